"""The transformer: pre-norm RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases.

Parameters carry Hugging Face's names (`layers.0.self_attn.q_proj.weight`, ...), so weights move without translation.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Documents, Mask, choose_backend
from .config import ModelConfig, RopeParameters
from .initialization import deviation
from .loss import Loss, cross_entropy


class Transformer(nn.Module):
    """A code world model. Build it under `torch.device("meta")` to get its shapes without its memory.

    `initialize` gives such a model weights, and any model weights that depend on nothing but a seed.
    """

    attention_backend: str | None = None
    """One of `attention.BACKENDS`; None: "flex" on CUDA, "sdpa" elsewhere."""
    context_ranks: int = 1
    """Ranks that share a row's tokens: each is given its own and their `position_ids`, but `cu_seqlens` of them all."""

    def __init__(self, config: ModelConfig) -> None:
        """Random weights from PyTorch's global generator, on the current default device."""
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
                nn.init.normal_(parameter, std=deviation(name, config.num_hidden_layers))

    def forward(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
    ) -> Tensor:
        """Logits [..., vocab] of the next token at each of `tokens`, integers [batch, length] or packed [length].

        `cu_seqlens` [documents + 1] holds the offsets of documents in the flattened tokens, from 0 to their number;
        without it each row is one document. `position_ids`, of the tokens' shape, default to the offset within the
        document. `global_window` caps how far the layers without a window of their own look, the token itself included.
        Raises ValueError when `cu_seqlens` does not cover the tokens, RuntimeError when `attention_backend` cannot run.
        """
        return self.lm_head(self.hidden(tokens, cu_seqlens, position_ids, global_window=global_window))

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        loss_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
    ) -> Loss:
        """See `cross_entropy`: of `targets`, of the tokens' shape, where `loss_mask` is true."""
        hidden = self.hidden(tokens, cu_seqlens, position_ids, global_window=global_window)
        return cross_entropy(hidden, self.lm_head.weight, targets, loss_mask)

    def hidden(
        self,
        tokens: Tensor,
        cu_seqlens: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        global_window: int | None = None,
    ) -> Tensor:
        """What the output layer reads, [..., width]; arguments as in `forward`."""
        if self.context_ranks > 1 and position_ids is None:
            raise ValueError("position_ids are needed where ranks share a row's tokens")
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
        return self.norm(x).view(*shape, -1)


class Layer(nn.Module):
    """Attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        """Of the sizes in `config`."""
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        """Map the residual stream [batch, length, width] to itself."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        """Of the sizes in `config`."""
        super().__init__()
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)
        self.inner = InnerAttention()

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Mask) -> Tensor:
        """Attend as the mask says; [batch, length, width] to the same."""
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_dim)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Under autocast products are bfloat16, but the stream's angles, and with them what they rotate, float32.
        q, k = (rotate(t, rotation).to(v.dtype).transpose(1, 2) for t in (q, k))
        v = v.transpose(1, 2)
        return self.o_proj(self.inner(q, k, v, mask).transpose(1, 2).flatten(2))


class InnerAttention(nn.Module):
    """Attention proper, as a module: parallelism hooks in here to exchange heads for tokens between ranks."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
        """`q`, `k`, `v` [batch, heads, length, head_dim], of all tokens of `mask`, to the shape of `q`."""
        return mask.attend(q, k, v)


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        """Of the sizes in `config`."""
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def rotary(position_ids: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine, each [batch, length, 1, head_dim], of the angles at `position_ids` [batch, length].

    The first half of the sine is negated, so that `rotate` is two products and a sum.
    """
    frequencies = rotary_frequencies(config.rope_parameters, config.head_dim, position_ids.device)
    angles = position_ids[..., None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (x[i], x[i + head_dim/2]) of `x` [batch, length, heads, head_dim] by its position's angle."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@lru_cache
def rotary_frequencies(rope: RopeParameters, head_dim: int, device: torch.device) -> Tensor:
    """Radians per position, float32 [head_dim / 2], with Llama-3's stretching of long wavelengths.

    Not a buffer of the model: moving the model to bfloat16 would round it, and positions near 131,072 would be off.
    """
    frequencies = 1.0 / rope.rope_theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    turns = (
        rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    )  # full turns within the original context
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0, 1)
    return keep * frequencies + (1 - keep) * frequencies / rope.factor
