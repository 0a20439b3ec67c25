"""Counts that follow from a model's shape: weights, and operations of what is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from . import ModelConfig


def layer_matrices(model: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the weight matrices of one layer."""
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    projections = [(q, model.hidden_size), (kv, model.hidden_size), (kv, model.hidden_size), (model.hidden_size, q)]
    return [
        *projections,
        *[(model.intermediate_size, model.hidden_size)] * 2,
        (model.hidden_size, model.intermediate_size),
    ]


def layer_weights(model: ModelConfig) -> int:
    """Weights in the matrices of one layer."""
    return sum(rows * columns for rows, columns in layer_matrices(model))


def parameters(model: ModelConfig) -> int:
    """All weights of `Transformer`: embedding, output layer, matrices and two norms a layer, and the last norm."""
    layer = layer_weights(model) + 2 * model.hidden_size
    return 2 * model.vocab_size * model.hidden_size + model.num_hidden_layers * layer + model.hidden_size


def unmasked(length: int, window: int | None = None) -> int:
    """Pairs of a query and a key that it may look at, in causal attention over a document of `length` tokens.

    length (length + 1) / 2, and with a `window` shorter than the document: the triangle of the first `window` tokens,
    then `window` keys for each token.
    """
    if window is None or window >= length:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def training_flops(model: ModelConfig, lengths: Iterable[int], loss_tokens: int, global_window: int | None) -> float:
    """FLOPs that training on documents of these `lengths` (tokens) takes, nothing computed twice; the model's own.

    A product with a matrix of N weights is 2 N FLOPs a token (arXiv 2001.08361, section 2.1), attention two products
    of 2 x heads x head_dim for each unmasked pair, and a backward pass twice the forward pass. The output layer is
    counted for the `loss_tokens` alone, which are all that it sees. `global_window` caps the layers without a window.
    """
    windows = [global_window if window is None else window for window in model.layer_windows]
    tokens = pairs = 0
    for length in lengths:
        tokens += length
        pairs += sum(count * unmasked(length, window) for window, count in Counter(windows).items())
    linear = 2 * model.num_hidden_layers * layer_weights(model) * tokens
    head = 2 * model.vocab_size * model.hidden_size * loss_tokens
    return 3.0 * (linear + head + 4 * model.num_attention_heads * model.head_dim * pairs)
