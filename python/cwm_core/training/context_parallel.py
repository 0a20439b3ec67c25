"""Context parallelism: ranks share a row of tokens, and exchange heads for tokens around attention (Ulysses).

Between attention each rank has tokens / ranks of all heads; in attention it has all tokens of heads / ranks: one
all-to-all before and one after (arXiv 2309.14509). So attention sees whole documents: any kernel, document mask and
window works as on one rank, and every rank does the same work, whatever the documents.

PyTorch's own `torch.distributed.tensor.experimental.context_parallel` does not fit packed documents. As of 2.13, its
ring for `scaled_dot_product_attention` is causal or full over one sequence and refuses a mask; its form for
`flex_attention` takes a block mask, but gathers all keys and values on each rank and needs tokens divisible by 128 x
ranks; for kernels of packed documents it has nothing; and what balances the ranks' work by documents is private.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from ..model import Transformer


def share_tokens(model: Transformer, group: dist.ProcessGroup, tensor: int) -> None:
    """Have the ranks of `group` exchange heads for tokens around each layer's inner attention.

    `tensor` is the number of ranks that have the heads divided already. Where there are more ranks than key and value
    heads, each of these goes to several. Raises ValueError where the group's ranks do not divide the heads that are
    left to each tensor rank, or neither divides the other of ranks and key and value heads.
    """
    ranks, heads, kv_heads = (
        group.size(),
        model.config.num_attention_heads // tensor,
        model.config.num_key_value_heads // tensor,
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

    for layer in model.layers:
        layer.self_attn.inner.register_forward_pre_hook(before)
        layer.self_attn.inner.register_forward_hook(after)
    model.context_ranks = ranks


def _heads_for_tokens(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """From each [batch, heads, tokens / ranks, head_dim] to [batch, heads / ranks, tokens, head_dim]."""
    ranks = group.size()
    # Queries, keys and values for one rank lie together: one exchange instead of three.
    by_rank = torch.cat([x.unflatten(1, (ranks, -1)) for x in (q, k, v)], 2).movedim(1, 0)
    mixed = _exchange(by_rank, group).movedim(0, 2).flatten(2, 3)
    return mixed.split([x.shape[1] // ranks for x in (q, k, v)], 1)


def _tokens_for_heads(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """From [batch, heads / ranks, tokens, head_dim] to [batch, heads, tokens / ranks, head_dim]."""
    return _exchange(x.unflatten(2, (group.size(), -1)).movedim(2, 0), group).movedim(0, 1).flatten(1, 2)


def _exchange(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`x[i]` of this rank becomes `x[this rank]` of rank i."""
    return all_to_all_single_autograd(x.contiguous(), None, None, group)
