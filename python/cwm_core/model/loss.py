"""Cross entropy of next tokens without ever holding all logits."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

# Logits held at a time on a CPU: 2**21 float32 values (8 MiB) stay near its caches.
CPU_CHUNK_LOGITS = 2**21

# Positions held at a time on other devices. Adding a chunk's product to the gradient of the output layer moves 12 bytes
# a weight (bfloat16 written and read, float32 read and written) beside 6 FLOPs a weight and position, so the moving
# takes 500/positions of the time of the products on a GPU of 1e15 FLOP/s and 4e12 byte/s, whatever the vocabulary:
# hundreds of positions would cost as much again, and 2,048 a quarter for 2 GB (128,256 logits each, in bfloat16).
GPU_CHUNK_ROWS = 2048


class Loss(NamedTuple):
    """Negative log likelihoods in nats."""

    total: Tensor
    """Their sum, a float32 scalar."""
    tokens: Tensor
    """Each position's own, float32 of the targets' shape, 0 where no loss counts. Has no gradient."""


def cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> Loss:
    """Negative log likelihood of `targets` under the logits `hidden @ weight.T`.

    hidden [..., width], weight [vocab, width], targets [...] integers, mask [...] bool: true where the loss counts.
    Positions outside the mask cost nothing: they are dropped before the output layer. The total is the sum, so that the
    caller can divide by the tokens of a whole (accumulated, distributed) batch.

    With a `group`, `weight` is this rank's slice of the vocabulary's rows, rank r's the r-th and none empty, and all
    else is equal on all ranks: so are the results and the gradient of `hidden`. A target outside the vocabulary then
    gives NaN. A `weight` that is a DTensor of rows shared by the ranks of a one-dimensional mesh brings its own group.
    """
    if isinstance(weight, DTensor):
        weight, group = _local_rows(weight)
    shape = targets.shape
    hidden, targets = hidden.flatten(0, -2), targets.flatten().long()
    kept = None
    if mask is not None:
        kept = mask.flatten().nonzero().squeeze(1)
        hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (t.to(torch.get_autocast_dtype(t.device.type)) for t in (hidden, weight))
    total, tokens = _LinearCrossEntropy.apply(hidden, weight, targets, group)
    if kept is not None:
        tokens = tokens.new_zeros(shape.numel()).index_copy_(0, kept, tokens)
    return Loss(total, tokens.view(shape))


def _local_rows(weight: DTensor) -> tuple[Tensor, dist.ProcessGroup | None]:
    """This rank's rows, and the group that shares them; None if each rank has them all."""
    mesh, placements = weight.device_mesh, weight.placements
    if mesh.ndim != 1 or not (placements[0].is_replicate() or placements[0] == Shard(0)):
        raise ValueError(f"the output layer must be cut by rows over a mesh of one dimension, got {placements}")
    return weight.to_local(), mesh.get_group() if placements[0].is_shard() else None


def chunk_rows(vocab: int, device: torch.device) -> int:
    """Positions whose logits, `vocab` each, are held at a time."""
    return max(1, CPU_CHUNK_LOGITS // vocab) if device.type == "cpu" else GPU_CHUNK_ROWS


class _LinearCrossEntropy(torch.autograd.Function):
    """Output layer and cross entropy as one operation that makes its gradients while it has the logits.

    With p = softmax(h Wᵀ), the gradient of the summed loss is g = p - onehot(target) for the logits, so g W for h and
    gᵀ h for W: both are ready when the forward pass leaves a chunk, and no logits are kept or computed twice. The
    gradient of W is summed in float32: in bfloat16 a sum over chunks would lose those that are small beside it.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, group: dist.ProcessGroup | None
    ) -> tuple[Tensor, Tensor]:
        tokens = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        here = None
        if group is not None:
            targets, here, outside = _targets_of_slice(targets, len(weight), group)
        size = chunk_rows(len(weight), hidden.device)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            target = targets[rows, None]
            log_probs = _log_softmax(hidden[rows] @ weight.T, group)
            tokens[rows] = -log_probs.gather(1, target).squeeze(1)
            if hidden_grad is None and weight_grad is None:
                continue
            one = log_probs.new_ones(target.shape) if here is None else here[rows, None]
            logits_grad = log_probs.exp_().scatter_add_(1, target, -one).to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        if group is not None:
            tokens *= here
            dist.all_reduce(tokens, group=group)
            tokens.masked_fill_(outside, float("nan"))
            if hidden_grad is not None:
                dist.all_reduce(hidden_grad, group=group)
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.mark_non_differentiable(tokens)
        return tokens.sum(), tokens

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * grad.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * grad).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None, None


def _targets_of_slice(targets: Tensor, vocab: int, group: dist.ProcessGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Targets as rows of this rank's `vocab` rows, 1.0 where they are (else 0.0), true where they are no rank's."""
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    sizes = torch.zeros(ranks, dtype=torch.long, device=targets.device)
    sizes[rank] = vocab
    dist.all_reduce(sizes, group=group)
    outside = (targets < 0) | (targets >= sizes.sum())
    targets = targets - sizes[:rank].sum()
    here = (targets >= 0) & (targets < vocab)
    return targets.clamp(0, vocab - 1), here.float(), outside


def _log_softmax(logits: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log probabilities, float32, of `logits` [rows, vocab], which the ranks of a group have slices of."""
    if group is None:
        return logits.log_softmax(-1, dtype=torch.float32)
    logits = logits.float()
    ours = logits.logsumexp(-1, keepdim=True)
    all_ranks = [torch.empty_like(ours) for _ in range(dist.get_world_size(group))]
    dist.all_gather(all_ranks, ours, group=group)
    return logits - torch.cat(all_ranks, 1).logsumexp(-1, keepdim=True)
