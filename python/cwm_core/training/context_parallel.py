"""Context parallelism: ranks share a row of tokens and exchange heads for tokens around attention (Ulysses).

Outside attention each rank has tokens / ranks of all heads, inside attention all tokens of heads / ranks, with one
all-to-all before and one after (arXiv 2309.14509). Attention sees whole documents: every kernel, document mask and
window works as on one rank, and all ranks do the same work for any documents.

PyTorch's `torch.distributed.tensor.experimental.context_parallel` does not fit packed documents. As of 2.13, its ring
for `scaled_dot_product_attention` supports causal or full attention over one sequence and no mask. Its form for
`flex_attention` takes a block mask, but gathers all keys and values on each rank and needs tokens divisible by 128 x
ranks. It does not support kernels for packed documents, and its load balancing by documents is private.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from ..model import Transformer
from ..model.transformer import InnerAttention


def share_tokens(model: Transformer, group: dist.ProcessGroup, tensor_parallel: int) -> None:
    """Make the ranks of `group` exchange heads for tokens around the inner attention of each layer.

    If there are more ranks than key and value heads, each of these heads goes to several ranks.

    Args:
        model: Model to change in place.
        group: Context ranks.
        tensor_parallel: Number of ranks that already share the heads.

    Raises:
        ValueError: The ranks do not divide the heads left to each tensor rank, or neither of ranks and key and value
            heads divides the other.
    """
    ranks, heads, kv_heads = (
        group.size(),
        model.config.num_attention_heads // tensor_parallel,
        model.config.num_key_value_heads // tensor_parallel,
    )
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise ValueError(
            f"{ranks} context ranks cannot share {heads} heads with {kv_heads} key and value heads (of a tensor rank)"
        )
    copies = max(1, ranks // kv_heads)

    def before(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        q, k, v, *rest = args
        if copies > 1:
            k, v = k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)
        return *_heads_for_tokens(q, k, v, group), *rest

    def after(_: Any, __: Any, out: Tensor) -> Tensor:
        return _tokens_for_heads(out, group)

    for module in model.modules():
        if isinstance(module, InnerAttention):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)
    model.context_ranks = ranks


def _heads_for_tokens(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Exchange each [batch, heads, tokens / ranks, head_dim] for [batch, heads / ranks, tokens, head_dim]."""
    ranks = group.size()
    # Queries, keys and values for one rank are contiguous: one exchange instead of three.
    by_rank = torch.cat([torch.unflatten(x, 1, (ranks, -1)) for x in (q, k, v)], 2).movedim(1, 0)
    mixed = _exchange(by_rank, group).movedim(0, 2).flatten(2, 3)
    return torch.split(mixed, [x.shape[1] // ranks for x in (q, k, v)], 1)


def _tokens_for_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Exchange [batch, heads / ranks, tokens, head_dim] for [batch, heads, tokens / ranks, head_dim]."""
    return _exchange(torch.unflatten(x, 2, (group.size(), -1)).movedim(2, 0), group).movedim(0, 1).flatten(1, 2)


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Send `x[i]` to rank i, which receives it as `x[this rank]`."""
    return all_to_all_single_autograd(x.contiguous(), None, None, group)
