"""The transformer of all families: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Biases of attention and norms of queries and keys are features of the configuration. Parameters have the names of
Hugging Face (`layers.0.self_attn.q_proj.weight`, ...).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Mask, choose_backend
from .attention.documents import Documents
from .config import ModelConfig
from .initialization import deviation
from .loss import Loss, Objective, cross_entropy
from .rotary import rotary, rotate


class Transformer(nn.Module):
    """A code world model, or another model with the features of `ModelConfig`.

    To get the shapes without the memory, build it under `torch.device("meta")`; then call `initialize` or `load_into`.

    Attributes:
        config: Shape of the model.
    """

    attention_backend: str | None = None
    """Key of `attention.BACKENDS`; None: "flex" on CUDA, "sdpa" elsewhere."""
    context_ranks: int = 1
    """Ranks that share the tokens of a row. Each rank passes its own tokens and `position_ids`, and `cu_seqlens` of the
    whole row."""

    def __init__(self, config: ModelConfig) -> None:
        """Draw weights from PyTorch's global generator on the default device."""
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=deviation(name, config))
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
    ) -> Tensor:
        """Return the logits of the next token, [..., vocab].

        Args:
            tokens: Token ids, integers [batch, length], or packed [length].
            cu_seqlens: Offsets of documents in the flattened tokens, integers [documents + 1], from 0 to the number of
                tokens;
                None: each row is one document.
            position_ids: Positions in the shape of `tokens`. Defaults to the offset within the document.
            global_window: Window in tokens for layers without a window of their own, the token itself included.

        Raises:
            ValueError: `cu_seqlens` does not cover the tokens, or `position_ids` are missing although ranks share rows.
            RuntimeError: `attention_backend` cannot run on this device.
        """
        logits: Tensor = self.lm_head(self.hidden(tokens, cu_seqlens, position_ids, global_window=global_window))
        return logits

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
        objective: Objective | None = None,
    ) -> Loss:
        """Return the loss of `targets` where `loss_mask` is true, or the sum of an `objective`; see `cross_entropy`.

        `targets` and `loss_mask` have the shape of `tokens`. Other arguments are those of `forward`.
        """
        hidden = self.hidden(tokens, cu_seqlens, position_ids, global_window=global_window)
        return cross_entropy(hidden, self.lm_head.weight, targets, loss_mask, objective=objective)

    def hidden(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
    ) -> Tensor:
        """Return the input of the output layer, [..., hidden_size]; arguments as in `forward`."""
        if self.context_ranks > 1 and position_ids is None:
            raise ValueError("position_ids are required when ranks share the tokens of a row")
        shape = tokens.shape
        if cu_seqlens is not None:
            documents = Documents.from_offsets(cu_seqlens, tokens.numel() * self.context_ranks, tokens.device)
            tokens = tokens.reshape(1, -1)
            if position_ids is None:
                position_ids = torch.arange(tokens.numel(), device=tokens.device) - documents.starts()
        else:
            tokens = tokens.reshape(-1, shape[-1])
            documents = Documents.from_rows(len(tokens), shape[-1] * self.context_ranks, tokens.device)
            if position_ids is None:
                position_ids = torch.arange(shape[-1], device=tokens.device).expand(tokens.shape)
        x = self.embed_tokens(tokens)
        rotation = rotary(position_ids.reshape(tokens.shape), self.config, x.dtype)
        windows = [global_window if window is None else window for window in self.config.layer_windows]
        backend = choose_backend(self.attention_backend, tokens.device)
        masks = {window: backend(documents, window) for window in dict.fromkeys(windows)}
        for layer, window in zip(self.layers, windows, strict=True):
            x = layer(x, rotation, masks[window])
        normed: Tensor = self.norm(x)
        return normed.view(*shape, -1)


class Layer(nn.Module):
    """Attention and feed-forward block, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layer with the sizes in `config`."""
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        """Map the residual stream [batch, length, hidden_size] to itself."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the projections with the sizes in `config`."""
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        bias = config.attention_bias or config.qkv_bias
        self.q_proj = nn.Linear(config.hidden_size, queries, bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, config.attention_bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(self.head_dim, config.rms_norm_eps) if config.qk_norm else nn.Identity() for _ in range(2)
        )
        self.inner = InnerAttention()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        """Attend under `mask`; maps [batch, length, hidden_size] to the same shape."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Under autocast, products are bfloat16 but angles, and so rotated queries and keys, are float32.
        q, k = (
            rotate(norm(t), rotation).to(v.dtype).transpose(1, 2) for norm, t in ((self.q_norm, q), (self.k_norm, k))
        )
        v = v.transpose(1, 2)
        out: Tensor = self.o_proj(self.inner(q, k, v, mask).transpose(1, 2).flatten(2))
        return out


class InnerAttention(nn.Module):
    """Attention without projections, as a module: context parallelism hooks in here to exchange heads for tokens."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """Map `q`, `k`, `v` [batch, heads, length, head_dim] of all tokens of `mask` to the shape of `q`."""
        return mask.attend(q, k, v)


class FeedForward(nn.Module):
    """SwiGLU feed-forward block (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the projections with the sizes in `config`."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `x` [..., hidden_size]; return the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
