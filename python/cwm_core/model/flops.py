"""Parameter and FLOP counts that follow from a model's shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from . import ModelConfig


def layer_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Return rows and columns of each weight matrix of one layer."""
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    projections = [(q, model.hidden_size), (kv, model.hidden_size), (kv, model.hidden_size), (model.hidden_size, q)]
    return [
        *projections,
        *[(model.intermediate_size, model.hidden_size)] * 2,
        (model.hidden_size, model.intermediate_size),
    ]


def layer_weights(model: ModelConfig) -> int:
    """Return the number of weights in the matrices of one layer."""
    return sum(rows * columns for rows, columns in layer_matrices(model))


def layer_vectors(model: ModelConfig) -> int:
    """Return the number of weights in the norms and biases of one layer."""
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    biases = (q + 2 * kv) * (model.attention_bias or model.qkv_bias) + model.hidden_size * model.attention_bias
    return 2 * model.hidden_size + biases + 2 * model.head_dim * model.qk_norm


def parameters(model: ModelConfig) -> int:
    """Return the number of weights of a model.

    Counts the embedding, the output layer unless it is tied to the embedding, the matrices, norms and biases of each
    layer, and the last norm.
    """
    tables = 1 if model.tie_word_embeddings else 2
    layer = layer_weights(model) + layer_vectors(model)
    return tables * model.vocab_size * model.hidden_size + model.num_hidden_layers * layer + model.hidden_size


def unmasked(length: int, window: int | None = None) -> int:
    """Return the number of pairs of a query and a key that causal attention computes in a document of `length` tokens.

    Without a `window` this is length (length + 1) / 2. With a window shorter than the document, it is the triangle of
    the first `window` tokens plus `window` keys for each later token.
    """
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def training_flops(model: ModelConfig, lengths: Iterable[int], loss_tokens: int, global_window: int | None) -> float:
    """Return the model FLOPs of training on documents, without recomputation.

    A product with a matrix of N weights takes 2 N FLOPs per token (arXiv 2001.08361, section 2.1). Attention takes two
    products of 2 x heads x head_dim FLOPs per unmasked pair. A backward pass takes twice the FLOPs of a forward pass.

    Args:
        model: Shape of the model.
        lengths: Length of each document in tokens.
        loss_tokens: Tokens with loss; the output layer computes only these.
        global_window: Window in tokens for layers without a window of their own; None: unlimited.
    """
    windows = [global_window if window is None else window for window in model.layer_windows]
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += sum(count * unmasked(length, window) for window, count in Counter(windows).items())
    linear = 2 * model.num_hidden_layers * layer_weights(model) * tokens
    head = 2 * model.vocab_size * model.hidden_size * loss_tokens
    return 3.0 * (linear + head + 4 * model.num_attention_heads * model.head_dim * pairs)
