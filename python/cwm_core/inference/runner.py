"""Run the forward pass of generation: prompts in pieces, then one token of every sequence in each step.

The result equals `Transformer.forward` with the same weights. The number of operations is minimal, since a step of few
sequences takes as long as launching its operations and reading their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Transformer
from ..model.rotary import rotary, rotate
from ..model.transformer import Layer
from .attention import (
    append_and_attend,
    counted_attention,
    decode_mask,
    find_counting_kernel,
    key_splits,
    split_attention,
)
from .cache import KeyValueCache, rounded


@dataclass(frozen=True)
class Piece:
    """Tokens to append to the sequence in a slot of the cache."""

    slot: int
    tokens: list[int]


class ModelRunner:
    """Run a model over a cache. On CUDA, each shape of a step is captured once as a graph and then replayed."""

    def __init__(self, model: Transformer, cache: KeyValueCache) -> None:
        """Join weights that share an input; the model's weights become views of the joined ones."""
        self.model, self.cache, self.config = model, cache, model.config
        self._layers = [cast(Layer, layer) for layer in model.layers]
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.kernel = find_counting_kernel(self.config, cache.device, cache.dtype)
        """Kernel for layers whose places are filled in order; None uses masks, which rings always need."""
        self.join_weights()

    def join_weights(self) -> None:
        """Join the weights again if they were replaced, else do nothing."""
        layers = self._layers
        self._qkv = [joined(x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj) for x in layers]
        self._gate_up = [joined(x.mlp.gate_proj, x.mlp.up_proj) for x in layers]
        for linear in [y for x in layers for y in (x.self_attn.o_proj, x.mlp.down_proj)]:
            lay_by_columns(linear)
        if not self.config.tie_word_embeddings:  # tied weights are also read by rows, as embeddings
            lay_by_columns(self.model.lm_head)
        self._graphs.clear()

    @torch.inference_mode()
    def resize(self, slots: int, capacity: int) -> None:
        """Resize the cache as `KeyValueCache.resize` does, and rebuild all that depends on its memory."""
        cache = self.cache
        cache.resize(slots, capacity)
        self._graphs.clear()
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=cache.device)
        self._positions = torch.zeros_like(self._tokens)
        self._rotation = [
            table[:, 0] for table in rotary(torch.arange(cache.capacity, device=cache.device), self.config, cache.dtype)
        ]
        self._flat = [layer.flatten(1, 3) for layer in cache.layers]

    def prefill(self, pieces: list[Piece]) -> None:
        """Append pieces of different slots to the cache in one pass."""
        cache = self.cache
        counts = [len(piece.tokens) for piece in pieces]
        starts = [int(cache.lengths[piece.slot]) for piece in pieces]
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        rotation = self._rotation_at(torch.from_numpy(positions).to(cache.device))
        x = self.model.embed_tokens(torch.tensor([t for piece in pieces for t in piece.tokens], device=cache.device))
        for i, layer in enumerate(cache.layers):
            q, k, v = (t.transpose(0, 1) for t in self._project(i, x, rotation))
            splits = zip(pieces, starts, zip(*(torch.split(t, counts, 1) for t in (q, k, v)), strict=True), strict=True)
            out = [
                append_and_attend(layer[:, piece.slot], start, qkv, self.config.layer_windows[i])
                for piece, start, qkv in splits
            ]
            x = self._finish(i, x, torch.cat(out, 1).transpose(0, 1))
        for piece in pieces:
            cache.lengths[piece.slot] += len(piece.tokens)

    def decode(self, tokens: list[int]) -> Tensor:
        """Return the logits [n, vocab] after one more token in each of the first n slots.

        The caller then increments the lengths of the slots that it advances. The logits of other slots have no meaning,
        and their next token overwrites their keys and values.
        """
        n, cache = len(tokens), self.cache
        longest = int(cache.lengths[:n].max()) + 1
        self._tokens[:n].copy_(torch.tensor(tokens))
        self._positions[:n].copy_(torch.from_numpy(cache.lengths[:n]))
        if cache.device.type != "cuda":
            return self._step(n, min(rounded(longest), cache.capacity))
        # Powers of two keep the number of graphs small.
        shape = (min(power_of_two(n), cache.slots), min(power_of_two(longest, 256), cache.capacity))
        self._positions[n : shape[0]] = 0
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(*shape)
        graph, logits = self._graphs[shape]
        graph.replay()
        return logits[:n]

    def _capture(self, n: int, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Return a step as a graph, and the tensor that receives its logits. Running a step twice is harmless."""
        self._step(n, span)  # choose kernels and initialize libraries outside the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(n, span)
        return graph, logits

    def _step(self, n: int, span: int) -> Tensor:
        """Return the logits of the first n slots for their tokens and positions; no slot is longer than `span`."""
        cache, heads, size = self.cache, self.config.num_key_value_heads, self.config.head_dim
        positions = self._positions[:n]
        rotation = self._rotation_at(positions)
        first_rows = torch.arange(n * heads, device=cache.device).view(n, heads)
        # For each kind of layer: the rows that receive the keys, and the attention function.
        kinds: dict[tuple[int, int | None], tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]] = {}
        x = self.model.embed_tokens(self._tokens[:n])
        for i, (layer, flat) in enumerate(zip(cache.layers, self._flat, strict=True)):
            length, window = layer.shape[3], self.config.layer_windows[i]
            kind = length, None if window is not None and window >= span else window
            if kind not in kinds:
                rows = (first_rows * length + (positions % length)[:, None]).flatten()
                kinds[kind] = rows, self._attention(positions, min(span, length), *kind)
            rows, attend = kinds[kind]
            q, k, v = self._project(i, x, rotation)
            flat[0].index_copy_(0, rows, k.reshape(-1, size))
            flat[1].index_copy_(0, rows, v.reshape(-1, size))
            out = attend(q.reshape(n * heads, -1, size), layer[:, :n])
            x = self._finish(i, x, out.view(n, -1, size))
        logits: Tensor = self.model.lm_head(normalize(x, self.model.norm))
        return logits

    def _attention(
        self, positions: Tensor, span: int, length: int, window: int | None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the attention of queries at `positions` [n] to the first `span` places of one kind of layer."""
        heads = self.config.num_key_value_heads
        if self.kernel is not None and window is None:
            counts = (positions + 1).int()[:, None].expand(-1, heads).flatten()
            return partial(counted_attention, counts=counts, span=span, kernel=self.kernel)
        mask = decode_mask(positions, span, length, window, self.cache.dtype)
        mask = mask[:, None].expand(-1, heads, -1).flatten(0, 1)[:, None]
        splits = key_splits(len(mask), span) if self.cache.device.type == "cuda" else 1
        return partial(split_attention, mask=mask, splits=splits)

    def _rotation_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotation
        return cos.index_select(0, positions)[:, None], sin.index_select(0, positions)[:, None]

    def _project(self, i: int, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries [tokens, heads, head_dim], and rotated keys and values [tokens, kv_heads, ...]."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        qkv = self._qkv[i](normalize(x, self._layers[i].input_layernorm)).unflatten(-1, (-1, self.config.head_dim))
        qk, v = torch.split(qkv, [heads + kv_heads, kv_heads], 1)
        if self.config.qk_norm:
            attention = self._layers[i].self_attn
            norms = (cast(nn.RMSNorm, norm) for norm in (attention.q_norm, attention.k_norm))
            halves = zip(torch.split(qk, [heads, kv_heads], 1), norms, strict=True)
            qk = torch.cat([normalize(half, norm) for half, norm in halves], 1)
        q, k = torch.split(rotate(qk, rotation), [heads, kv_heads], 1)
        return q, k, v

    def _finish(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """Return the output of layer i, given its input and its attention [tokens, heads, head_dim]."""
        layer = self._layers[i]
        x = x + cast(Tensor, layer.self_attn.o_proj(attended.flatten(1)))
        gate, up = self._gate_up[i](normalize(x, layer.post_attention_layernorm)).chunk(2, -1)
        return x + cast(Tensor, layer.mlp.down_proj(F.silu(gate).mul_(up)))


def normalize(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """Return `norm(x)`. On a CPU the module takes nine operations, whose launches dominate for few tokens."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return cast(Tensor, norm(x))
    assert norm.eps is not None
    mean_root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    root_eps = torch.full_like(mean_root, norm.eps**0.5)  # √(a² + b²), where a² is the mean square and b² is eps
    return (x / torch.hypot(mean_root, root_eps)).mul_(norm.weight)


class Joined(nn.Module):
    """Concatenates the outputs of linear layers with one input, for quantized weights, which cannot be joined."""

    def __init__(self, parts: tuple[nn.Linear, ...]) -> None:
        """Apply `parts` in order."""
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Map [tokens, inputs] to [tokens, outputs of all parts]."""
        return torch.cat([part(x) for part in self.parts], -1)


def joined(*parts: nn.Linear) -> nn.Module:
    """Return one linear layer with the outputs of all `parts`, whose parameters become views of its own."""
    if any(type(part.weight.data) is not Tensor for part in parts):
        return Joined(parts)
    biases = [part.bias for part in parts if part.bias is not None]
    with torch.device("meta"):
        linear = nn.Linear(parts[0].in_features, sum(part.out_features for part in parts), bias=bool(biases))
    linear.weight = concatenated([part.weight for part in parts])
    if biases:
        linear.bias = concatenated(biases)
    return linear


def concatenated(parts: Sequence[Tensor]) -> nn.Parameter:
    """Return one parameter with the rows of all `parts`, which become views of it."""
    counts, first = [len(part) for part in parts], parts[0].data
    if adjacent(parts):
        return nn.Parameter(first.as_strided((sum(counts), *first.shape[1:]), first.stride()), requires_grad=False)
    with torch.inference_mode(False):
        whole = torch.cat([part.data for part in parts])
        if whole.dim() == 2 and whole.device.type == "cpu":
            whole = by_columns(whole)
    for part, view in zip(parts, torch.split(whole, counts), strict=True):
        part.data = view
    return nn.Parameter(whole, requires_grad=False)


def lay_by_columns(linear: nn.Linear) -> None:
    """Store the weight of a CPU layer by columns, with which MKL multiplies few rows in 0.6 to 0.8 of the time."""
    weight = linear.weight
    if type(weight.data) is Tensor and weight.device.type == "cpu" and weight.is_contiguous():
        weight.data = by_columns(weight.data)


def by_columns(matrix: Tensor) -> Tensor:
    """Return an equal matrix that is stored by columns."""
    with torch.inference_mode(False):
        return matrix.t().contiguous().t()


def adjacent(parts: Sequence[Tensor]) -> bool:
    """Return whether matrices or vectors are adjacent parts of one, as `concatenated` stores them."""
    first = parts[0]
    offset, rows = first.storage_offset(), sum(len(part) for part in parts)
    by_rows = first.dim() == 1 or first.device.type != "cpu"
    strides = (*first.shape[1:], 1) if by_rows else (1, rows)
    for part in parts:
        shared = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not shared or part.storage_offset() != offset or part.stride() != strides:
            return False
        offset += len(part) * strides[0]
    return True


def power_of_two(n: int, least: int = 1) -> int:
    """Return the smallest power of two that is at least `n` and `least`."""
    return max(least, 1 << (n - 1).bit_length())
