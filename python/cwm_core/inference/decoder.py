"""A transformer's forward pass for generation: prompts in pieces, then one token a step for every sequence.

It computes what `Transformer.forward` does, from the same weights, in as few operations as can be: the time of a step
of few sequences is the number of its operations and the bytes that they read.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model import Transformer
from ..model.attention.sdpa import causal_attention
from ..model.attention.varlen import find_kernel
from ..model.transformer import rotary, rotate
from .cache import KeyValueCache, rounded

# Thread blocks that fill a large GPU twice over: attention of few sequences is cut along the keys until there are so
# many (flash-decoding, https://pytorch.org/blog/flash-decoding).
GPU_BLOCKS = 256


@dataclass(frozen=True)
class Piece:
    """Tokens of one sequence to append to the cache, after those that its slot holds."""

    slot: int
    tokens: list[int]


class Decoder:
    """Runs a model over a cache. On CUDA each shape of a step is captured once as a graph, and then replayed."""

    def __init__(self, model: Transformer, cache: KeyValueCache) -> None:
        """Join the weights that read the same input: the model's become views of the joined ones."""
        self.model, self.cache, self.config = model, cache, model.config
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.join_weights()

    def join_weights(self) -> None:
        """Again, where the model's weights were replaced since; no work where they were not."""
        layers = self.model.layers
        self._qkv = [joined(x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj) for x in layers]
        self._gate_up = [joined(x.mlp.gate_proj, x.mlp.up_proj) for x in layers]
        self._graphs.clear()

    @torch.inference_mode()
    def resize(self, slots: int, capacity: int) -> None:
        """See `KeyValueCache.resize`; what depends on where the cache lies is made anew."""
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
        """Append tokens to the cache, of different slots, all in one pass."""
        cache = self.cache
        counts = [len(piece.tokens) for piece in pieces]
        starts = [int(cache.lengths[piece.slot]) for piece in pieces]
        positions = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, counts, strict=True)])
        rotation = self._rotation_at(torch.from_numpy(positions).to(cache.device))
        x = self.model.embed_tokens(torch.tensor([t for piece in pieces for t in piece.tokens], device=cache.device))
        for i, layer in enumerate(cache.layers):
            q, k, v = (t.transpose(0, 1) for t in self._project(i, x, rotation))
            splits = zip(pieces, starts, zip(*(t.split(counts, 1) for t in (q, k, v)), strict=True), strict=True)
            out = [
                append_and_attend(layer[:, piece.slot], start, qkv, self.config.layer_windows[i])
                for piece, start, qkv in splits
            ]
            x = self._finish(i, x, torch.cat(out, 1).transpose(0, 1))
        for piece in pieces:
            cache.lengths[piece.slot] += len(piece.tokens)

    def decode(self, tokens: list[int]) -> Tensor:
        """Logits [n, vocab] after one more token in each of the first n slots, whose lengths the caller then raises.

        A slot whose turn it is not gives logits of no meaning, and what is written for it is overwritten by its next
        token.
        """
        n, cache = len(tokens), self.cache
        longest = int(cache.lengths[:n].max()) + 1
        self._tokens[:n].copy_(torch.tensor(tokens))
        self._positions[:n].copy_(torch.from_numpy(cache.lengths[:n]))
        if cache.device.type != "cuda":
            return self._step(n, min(rounded(longest), cache.capacity))
        # Powers of two, so that there are few graphs.
        shape = (min(power_of_two(n), cache.slots), min(power_of_two(longest, 256), cache.capacity))
        self._positions[n : shape[0]] = 0
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(*shape)
        graph, logits = self._graphs[shape]
        graph.replay()
        return logits[:n]

    def _capture(self, n: int, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A step as a graph, and where it leaves its logits. Running it twice writes the same."""
        self._step(n, span)  # kernels are chosen and libraries initialized outside of the capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(n, span)
        return graph, logits

    def _step(self, n: int, span: int) -> Tensor:
        """Logits of the first n slots, for their tokens and positions; no slot is longer than `span`."""
        cache, heads, size = self.cache, self.config.kv_heads, self.config.head_size
        positions = self._positions[:n]
        rotation = self._rotation_at(positions)
        first_rows = torch.arange(n * heads, device=cache.device).view(n, heads)
        splits = key_splits(n * heads, span) if cache.device.type == "cuda" else 1
        # Per kind of layer: its rows where keys go, and what is added to the scores.
        kinds: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = {}
        x = self.model.embed_tokens(self._tokens[:n])
        for i, (layer, flat) in enumerate(zip(cache.layers, self._flat, strict=True)):
            length, window = layer.shape[3], self.config.layer_windows[i]
            kind = length, None if window is not None and window >= span else window
            if kind not in kinds:
                rows = (first_rows * length + (positions % length)[:, None]).flatten()
                mask = decode_mask(positions, min(span, length), *kind, cache.dtype)
                kinds[kind] = rows, mask[:, None].expand(-1, heads, -1).flatten(0, 1)[:, None]
            rows, mask = kinds[kind]
            q, k, v = self._project(i, x, rotation)
            flat[0].index_copy_(0, rows, k.reshape(-1, size))
            flat[1].index_copy_(0, rows, v.reshape(-1, size))
            keys, values = layer[:, :n, :, : mask.shape[-1]].flatten(1, 2).unbind()
            out = split_attention(q.reshape(n * heads, -1, size), keys, values, mask, splits)
            x = self._finish(i, x, out.view(n, -1, size))
        return self.model.lm_head(normalize(x, self.model.norm))

    def _rotation_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotation
        return cos.index_select(0, positions)[:, None], sin.index_select(0, positions)[:, None]

    def _project(self, i: int, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [tokens, heads, head_size] and keys, and values, [tokens, kv_heads, head_size], of `x`."""
        heads, kv_heads = self.config.heads, self.config.kv_heads
        qkv = self._qkv[i](normalize(x, self.model.layers[i].input_layernorm)).unflatten(
            -1, (-1, self.config.head_size)
        )
        qk, v = qkv.split((heads + kv_heads, kv_heads), 1)
        q, k = rotate(qk, rotation).split((heads, kv_heads), 1)
        return q, k, v

    def _finish(self, i: int, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of layer i, from its input and its attention [tokens, heads, head_size]."""
        layer = self.model.layers[i]
        x = x + layer.self_attn.o_proj(attended.flatten(1))
        gate, up = self._gate_up[i](normalize(x, layer.post_attention_layernorm)).chunk(2, -1)
        return x + layer.mlp.down_proj(F.silu(gate).mul_(up))


def normalize(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """What the module gives; on a CPU that is nine operations, and for few tokens each costs what starting it costs."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return norm(x)
    mean_root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).mul_(x.shape[-1] ** -0.5)
    root_eps = torch.full_like(mean_root, norm.eps**0.5)  # √(a² + b²), where a² is the mean square and b² is eps
    return (x / torch.hypot(mean_root, root_eps)).mul_(norm.weight)


class Joined(nn.Module):
    """Linear maps of one input whose outputs stand side by side; for weights that are quantized, each its own."""

    def __init__(self, parts: tuple[nn.Linear, ...]) -> None:
        """Of these maps."""
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """[tokens, inputs] to [tokens, outputs of all]."""
        return torch.cat([part(x) for part in self.parts], -1)


def joined(*parts: nn.Linear) -> nn.Module:
    """A linear map to the outputs of all `parts`, whose weights become views of the map's: there is no second copy."""
    weights = [part.weight for part in parts]
    if any(type(weight.data) is not Tensor for weight in weights):
        return Joined(parts)
    rows, inputs = sum(len(weight) for weight in weights), weights[0].shape[1]
    if adjacent(weights):
        whole = weights[0].data.as_strided((rows, inputs), (inputs, 1))
    else:
        with torch.inference_mode(False):
            whole = torch.cat([weight.data for weight in weights])
        for weight, view in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
            weight.data = view
    with torch.device("meta"):
        linear = nn.Linear(inputs, rows, bias=False)
    linear.weight = nn.Parameter(whole, requires_grad=False)
    return linear


def adjacent(weights: list[nn.Parameter]) -> bool:
    """Whether the weights lie one after another in one storage."""
    first = weights[0]
    offset = first.storage_offset()
    for weight in weights:
        shared = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not shared or weight.storage_offset() != offset or not weight.is_contiguous():
            return False
        offset += weight.numel()
    return True


def append_and_attend(cached: Tensor, start: int, qkv: tuple[Tensor, Tensor, Tensor], window: int | None) -> Tensor:
    """Attention [heads, m, head_size] of a piece of a sequence that begins at position `start`, to all up to its end.

    `qkv` are queries [heads, m, head_size], and keys and values [kv_heads, m, head_size], which go into `cached` [2,
    kv_heads, length, head_size], the sequence's slot in a layer.
    """
    q, k, v = qkv
    length, m = cached.shape[2], k.shape[1]
    end = start + m
    if end <= length:
        cached[0, :, start:end], cached[1, :, start:end] = k, v
        return attend_to_end(q, cached[0, :, :end], cached[1, :, :end], window)
    assert window is not None  # a global layer is as long as the longest sequence
    before = torch.arange(max(0, start - window + 1), start, device=k.device) % length
    keys, values = (torch.cat((old.index_select(1, before), new), 1) for old, new in zip(cached, (k, v), strict=True))
    last = min(m, length)
    rows = torch.arange(end - last, end, device=k.device) % length
    cached[0].index_copy_(1, rows, k[:, m - last :])
    cached[1].index_copy_(1, rows, v[:, m - last :])
    return attend_to_end(q, keys, values, window)


def attend_to_end(q: Tensor, keys: Tensor, values: Tensor, window: int | None) -> Tensor:
    """Causal attention of `q` [heads, m, head_size], the last m of the n positions of `keys` and `values`."""
    if q.device.type == "cuda" and q.dtype != torch.float32 and (kernel := find_kernel()):
        m, n = q.shape[1], keys.shape[1]
        ends = [torch.tensor([0, length], dtype=torch.int32, device=q.device) for length in (m, n)]
        packed = (t.transpose(0, 1) for t in (q, keys, values))
        reach = (-1 if window is None else window - 1, 0)
        return kernel(*packed, *ends, m, n, window_size=reach).transpose(0, 1)
    return causal_attention(q[None], keys[None], values[None], window)[0]


def decode_mask(positions: Tensor, span: int, length: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """What is added to scores, [n, span], of the queries at `positions` [n] against the first places of a layer.

    In a ring of `length`, the latest position p at place j is the one with p % length = j.
    """
    age = (positions[:, None] - torch.arange(span, device=positions.device)) % length
    reach = positions if window is None else positions.clamp(max=window - 1)
    # Finite, so that a split of which a query sees nothing gives finite numbers, and then weight 0.
    lowest = torch.finfo(dtype).min / 2
    return torch.zeros((), dtype=dtype, device=age.device).where(age <= reach[:, None], lowest)


def key_splits(blocks: int, span: int) -> int:
    """Into how many parts to cut keys for `blocks` thread blocks to become `GPU_BLOCKS`, none under 64 keys."""
    return max(1, min(GPU_BLOCKS // blocks, span // 64))


def split_attention(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor, splits: int) -> Tensor:
    """Attention of `q` [n x kv_heads, group, head_size], one position each, to `keys`, `values` [.., span, head_size].

    `mask` [n x kv_heads, 1, span] is added to the scores. Keys are cut into `splits` parts, or fewer where they do not
    divide, which are attended to side by side; each part's output counts by its sum of exponentials.
    """
    _, group, size = q.shape
    span = keys.shape[1]
    while span % (8 * splits) and splits > 1:  # CUDA's kernels read masks in units of 16 bytes
        splits -= 1
    if splits == 1 and q.device.type == "cpu":
        return torch.baddbmm(mask, q, keys.transpose(1, 2), alpha=size**-0.5).softmax(-1) @ values
    key_parts, value_parts = (t.unflatten(1, (splits, -1)).transpose(0, 1) for t in (keys, values))
    added = mask.unflatten(2, (splits, -1)).movedim(2, 0).expand(-1, -1, group, -1)
    queries = q.expand(splits, *q.shape)
    if q.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = kernel(queries, key_parts, value_parts, attn_mask=added)
    else:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, sums, *_ = kernel(queries, key_parts, value_parts, added, compute_log_sumexp=True)
    weights = sums[:, :, :group].softmax(0)[..., None]
    return (out * weights).sum(0).to(q.dtype)


def power_of_two(n: int, least: int = 1) -> int:
    """The least power of two that is at least `n` and `least`."""
    return max(least, 1 << (n - 1).bit_length())
