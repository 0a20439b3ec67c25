"""Cross entropy of next tokens without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits held at a time. 2**21 float32 values (8 MiB) stay near the caches of a CPU and are no burden to a GPU.
CHUNK_LOGITS = 2**21


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """Summed negative log likelihood, in nats, of `targets` under the logits `hidden @ weight.T`.

    hidden [..., width], weight [vocab, width], targets [...] integers, mask [...] bool: true where the loss counts.
    Positions outside the mask cost nothing: they are dropped before the output layer. Returns a float32 scalar, the
    sum, so that the caller can divide by the tokens of a whole (accumulated, distributed) batch.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten().long()
    if mask is not None:
        kept = mask.flatten().nonzero().squeeze(1)
        hidden, targets = hidden.index_select(0, kept), targets.index_select(0, kept)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = (t.to(torch.get_autocast_dtype(t.device.type)) for t in (hidden, weight))
    return _LinearCrossEntropy.apply(hidden, weight, targets)


class _LinearCrossEntropy(torch.autograd.Function):
    """Output layer and cross entropy as one operation that makes its gradients while it has the logits.

    With p = softmax(h Wᵀ), the gradient of the summed loss is g = p - onehot(target) for the logits, so g W for h and
    gᵀ h for W: both are ready when the forward pass leaves a chunk, and no logits are kept or computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        hidden_grad = torch.empty_like(hidden) if need_hidden else None
        weight_grad = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if need_weight else None
        size = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            target = targets[rows, None]
            log_probs = (hidden[rows] @ weight.T).log_softmax(-1, dtype=torch.float32)
            loss -= log_probs.gather(1, target).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            logits_grad = log_probs.exp_().scatter_add_(1, target, log_probs.new_full(target.shape, -1.0))
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(hidden_grad, weight_grad)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden_grad, weight_grad = ctx.saved_tensors
        if hidden_grad is not None:
            hidden_grad = hidden_grad * grad.to(hidden_grad.dtype)
        if weight_grad is not None:
            weight_grad = (weight_grad * grad).to(ctx.weight_dtype)
        return hidden_grad, weight_grad, None
