"""Compute the cross entropy of next tokens without holding all logits in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

# Logits held at a time on a CPU: 2**21 float32 values (8 MiB) roughly fit its caches.
CPU_CHUNK_LOGITS = 2**21

# Positions held at a time on other devices. Adding a chunk's product to the gradient of the output layer moves 12 bytes
# per weight (bfloat16 written and read, float32 read and written), compared to 6 FLOPs per weight and position. On a
# GPU with 1e15 FLOP/s and 4e12 bytes/s, the traffic takes 500/positions of the time of the products, whatever the
# vocabulary. A few hundred positions would double the time; 2,048 add a quarter and take 2 GB (128,256 logits each, in
# bfloat16).
GPU_CHUNK_ROWS = 2048


Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function of negative log likelihoods, float32 [n], and their positions in the flattened targets, int64 [n].

It returns the loss of each position and its derivative by the negative log likelihood, both float32 [n]."""


class Loss(NamedTuple):
    """Negative log likelihoods in nats."""

    total: Tensor
    """Sum over all positions inside the mask, or the sum of the objective there; a float32 scalar."""
    tokens: Tensor
    """Negative log likelihood of each position, float32 in the shape of the targets, 0 outside the mask. Has no
    gradient."""


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    *,
    objective: Objective | None = None,
) -> Loss:
    """Return the negative log likelihood of `targets` under the logits `hidden @ weight.T`.

    Positions outside the mask cost nothing: they are dropped before the output layer. The total is a sum, so that the
    caller can divide by the number of tokens of a whole (accumulated, distributed) batch.

    Args:
        hidden: Input of the output layer, [..., hidden_size].
        weight: Output layer, [vocab, hidden_size]. A DTensor sharded by rows over a one-dimensional mesh brings its own
            `group`.
        targets: Token ids, integers [...].
        mask: Positions with loss, bool [...]. Defaults to all positions.
        group: Ranks that share the vocabulary. `weight` is then the slice of rows of this rank, in order of rank and
            not empty. All other arguments, the results, and the gradient of `hidden` are equal on all ranks. A target
            outside the vocabulary gives NaN.
        objective: Loss to sum instead of the negative log likelihoods, a function of them. It is called once for each
            chunk of positions inside the mask.

    Raises:
        ValueError: `weight` is a DTensor that is sharded in another way.
    """
    if isinstance(weight, DTensor):
        weight, group = _local_rows(weight)
    shape = targets.shape
    hidden, targets = hidden.flatten(0, -2), targets.flatten().long()
    kept = None
    positions = torch.arange(shape.numel(), device=targets.device) if objective else None
    if mask is not None:
        kept = positions = mask.flatten().nonzero().squeeze(1)
        hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (t.to(torch.get_autocast_dtype(t.device.type)) for t in (hidden, weight))
    total, tokens = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]  # PyTorch
        hidden, weight, targets, group, objective, positions
    )
    if kept is not None:
        tokens = tokens.new_zeros(shape.numel()).index_copy_(0, kept, tokens)
    return Loss(total, tokens.view(shape))


def _local_rows(weight: DTensor) -> tuple[Tensor, dist.ProcessGroup | None]:
    """Return the rows of this rank and the group that shares them, None if each rank has all rows."""
    mesh, placements = weight.device_mesh, weight.placements
    if mesh.ndim != 1 or not (placements[0].is_replicate() or placements[0] == Shard(0)):
        raise ValueError(f"the output layer must be sharded by rows over a mesh of one dimension, got {placements}")
    return weight.to_local(), mesh.get_group() if placements[0].is_shard() else None


def chunk_rows(vocab: int, device: torch.device) -> int:
    """Return the number of positions whose logits, `vocab` each, are held at a time."""
    return max(1, CPU_CHUNK_LOGITS // vocab) if device.type == "cpu" else GPU_CHUNK_ROWS


class _LinearCrossEntropy(torch.autograd.Function):
    """Output layer and cross entropy as one operation that computes gradients in the forward pass.

    With p = softmax(h Wᵀ), the gradient of the summed loss is g = p - onehot(target) for the logits, g W for h, and gᵀ
    h for W. An objective multiplies each row of g by its derivative. Both are ready when the forward pass leaves a
    chunk, so no logits are kept or computed twice. The gradient of W is summed in float32: a sum in bfloat16 would lose
    chunks that are small compared to the sum.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  # autograd passes no keywords
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        group: dist.ProcessGroup | None,
        objective: Objective | None,
        positions: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        losses = tokens if objective is None else torch.empty_like(tokens)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        local = None if group is None else _LocalTargets.of(targets, len(weight), group)
        if local is not None:
            targets = local.rows
        size = chunk_rows(len(weight), hidden.device)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            target = targets[rows, None]
            log_probs = _log_softmax(hidden[rows] @ weight.T, group)
            tokens[rows] = -log_probs.gather(1, target).squeeze(1)
            if local is not None:
                local.share(tokens, rows)
            if objective is not None and positions is not None:
                losses[rows], slopes = objective(tokens[rows], positions[rows])
            if hidden_grad is None and weight_grad is None:
                continue
            one = log_probs.new_ones(target.shape) if local is None else local.here[rows, None]
            logits_grad = log_probs.exp_().scatter_add_(1, target, -one)
            if objective is not None:
                logits_grad *= slopes[:, None]
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        if local is not None and hidden_grad is not None:
            dist.all_reduce(hidden_grad, group=group)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(tokens)
        return losses.sum(), tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * grad.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * grad).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None, None, None


class _LocalTargets(NamedTuple):
    """Targets relative to this rank's slice of the vocabulary."""

    rows: Tensor
    """Row numbers in the slice, clamped to it."""
    here: Tensor
    """1.0 where this rank has the row, else 0.0."""
    outside: Tensor
    """True where no rank has the row."""
    group: dist.ProcessGroup
    """Ranks that share the vocabulary."""

    @classmethod
    def of(cls, targets: Tensor, vocab: int, group: dist.ProcessGroup) -> _LocalTargets:
        """Return the targets relative to the `vocab` rows of this rank."""
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        sizes = torch.zeros(ranks, dtype=torch.long, device=targets.device)
        sizes[rank] = vocab
        dist.all_reduce(sizes, group=group)
        outside = (targets < 0) | (targets >= sizes.sum())
        targets = targets - sizes[:rank].sum()
        here = (targets >= 0) & (targets < vocab)
        return cls(targets.clamp(0, vocab - 1), here.float(), outside, group)

    def share(self, losses: Tensor, rows: slice) -> None:
        """Replace some rows of `losses`, each right on the rank that has its target, by those of all ranks."""
        part = losses[rows]
        part *= self.here[rows]
        dist.all_reduce(part, group=self.group)
        part.masked_fill_(self.outside[rows], float("nan"))


def _log_softmax(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return the float32 log probabilities of `logits` [rows, vocab], which are sharded over the ranks of `group`."""
    if group is None:
        return logits.log_softmax(-1, dtype=torch.float32)
    logits = logits.float()
    ours = logits.logsumexp(-1, keepdim=True)
    all_ranks = [torch.empty_like(ours) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_ranks, ours, group=group)
    return logits - torch.cat(all_ranks, 1).logsumexp(-1, keepdim=True)
