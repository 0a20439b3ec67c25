"""The Muon optimizer, with products in float32 on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# The quintic iteration of https://kellerjordan.github.io/posts/muon/: singular values end between about 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7


class Muon(Optimizer):
    """Momentum whose update is replaced by the nearest orthogonal matrix (https://kellerjordan.github.io/posts/muon/).

    `torch.optim.Muon` computes in bfloat16 everywhere. On a CPU without instructions for bfloat16 that takes longer
    than the forward and backward passes of a small model, so this class uses float32 on a CPU.

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
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, group)

    def _update(self, matrix: nn.Parameter, group: dict[str, float]) -> None:
        gradient = matrix.grad
        assert gradient is not None
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalize(gradient.lerp(buffer, group["momentum"]))
        rows, columns = matrix.shape
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return about U Vᵀ of the singular value decomposition U S Vᵀ, by Newton-Schulz iterations.

    Args:
        matrix: Shape [rows, columns].

    Returns:
        Shape [rows, columns]; float32 on a CPU and bfloat16 elsewhere.
    """
    wide = matrix.to(torch.float32 if matrix.device.type == "cpu" else torch.bfloat16)
    if is_tall := matrix.size(0) > matrix.size(1):
        wide = wide.T
    wide = wide / wide.norm().clamp(min=EPSILON)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if is_tall else wide
