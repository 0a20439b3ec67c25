"""The Muon optimizer, with products in float32 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ..model import sharding

# The quintic iteration of https://kellerjordan.github.io/posts/muon/: singular values end between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7

# Elements of the matrices that a rank holds whole at the same time, unless one matrix has more.
TOGETHER = 1 << 28


class Muon(Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix (https://kellerjordan.github.io/posts/muon/).

    `torch.optim.Muon` computes in bfloat16 everywhere. On a CPU without instructions for bfloat16 that takes longer
    than the forward and backward passes of a small model, so this class uses float32 on a CPU.

    Matrices may be sharded over all ranks of the default process group. Each rank then orthogonalizes its share of the
    matrices and sends the results to the others.

    Args:
        matrices: Parameters with two dimensions.
        lr: Learning rate; an update is scaled by lr · √max(1, rows / columns).
        weight_decay: A step scales each matrix by 1 - lr · weight_decay.
        momentum: Decay rate of the momentum, which is applied as Nesterov's.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, momentum: float = 0.95
    ) -> None:
        """Create the optimizer."""
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; `closure` is not supported."""
        for group in self.param_groups:
            # Matrices of one size follow each other, so that ranks that take turns do equal work.
            matrices = sorted((m for m in group["params"] if m.grad is not None), key=torch.numel, reverse=True)
            for some in _batches(matrices):
                updates = _orthogonalize_all([self._direction(matrix, group) for matrix in some])
                for matrix, update in zip(some, updates, strict=True):
                    _apply(matrix, update, group)

    def _direction(self, matrix: nn.Parameter, group: dict[str, float]) -> Tensor:
        """Add the gradient to the momentum, and return the update before it is orthogonalized."""
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        own, buffer = _local(gradient), _local(state["momentum_buffer"])  # DTensor's own operations take longer
        buffer.lerp_(own, 1 - group["momentum"])
        return sharding.sharded_like(gradient, own.lerp(buffer, group["momentum"]))


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _apply(matrix: Tensor, update: Tensor, group: dict[str, float]) -> None:
    rows, columns = matrix.shape
    own = _local(matrix)
    own.mul_(1 - group["lr"] * group["weight_decay"])
    own.add_(update[sharding.part(matrix)], alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def _batches(matrices: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yield groups of matrices that are held whole at the same time."""
    batch: list[nn.Parameter] = []
    for matrix in matrices:
        if batch and sum(map(torch.numel, batch)) + matrix.numel() > TOGETHER:
            yield batch
            batch = []
        batch.append(matrix)
    if batch:
        yield batch


def _orthogonalize_all(directions: list[Tensor]) -> list[Tensor]:
    """Return `orthogonalize` of each whole matrix; ranks that share matrices take turns and exchange the results."""
    if not isinstance(directions[0], DTensor):
        return [orthogonalize(direction) for direction in directions]
    wholes = [direction.full_tensor() for direction in directions if isinstance(direction, DTensor)]
    rank, ranks = dist.get_rank(), dist.get_world_size()
    owners = [number % ranks for number in range(len(wholes))]
    updates = [
        orthogonalize(whole).contiguous() if owner == rank else torch.empty_like(whole, dtype=_dtype(whole))
        for whole, owner in zip(wholes, owners, strict=True)
    ]
    pending = [dist.broadcast(update, owner, async_op=True) for update, owner in zip(updates, owners, strict=True)]
    for exchange in pending:
        exchange.wait()
    return updates


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about U Vᵀ of the singular value decomposition U S Vᵀ, by Newton-Schulz iterations.

    Args:
        matrix: Shape [rows, columns].

    Returns:
        Shape [rows, columns]; float32 on a CPU and bfloat16 elsewhere.
    """
    wide = matrix.to(_dtype(matrix))
    if is_tall := matrix.size(0) > matrix.size(1):
        wide = wide.T
    wide = wide / wide.norm().clamp(min=EPSILON)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if is_tall else wide


def _dtype(matrix: Tensor) -> torch.dtype:
    return torch.float32 if matrix.device.type == "cpu" else torch.bfloat16
