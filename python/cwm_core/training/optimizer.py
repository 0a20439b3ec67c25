"""Optimizers and the learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from .config import TrainConfig
from .muon import Muon


def make_optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return AdamW for all parameters, or Muon for the matrices of the layers and AdamW for the rest.

    Each parameter group stores its peak learning rate as `max_lr` for `set_learning_rate`.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        hidden = [name for name, p in parameters.items() if p.dim() == 2 and name.startswith("layers.")]
        matrices = [parameters.pop(name) for name in hidden]
        optimizers.append(Muon(matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay))
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    optimizers.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["max_lr"] = group["lr"]
    return optimizers


def learning_rate_factor(config: TrainConfig, step: int, progress: float) -> float:
    """Return the learning rate as a fraction of the peak: linear warm-up, then decay to `final_learning_rate`.

    The decay ends with the run, or with the horizon of several runs. The decay over a horizon ignores the warm-up of
    the first run.

    Args:
        config: Settings of the run.
        step: Number of the step, from 0.
        progress: Completed share of the run or of the horizon, from 0 to 1.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    is_own = config.max_steps and not config.horizon_tokens
    warmup = config.warmup_steps / config.max_steps if is_own else 0.0
    left = 1.0 - min(1.0, max(0.0, (progress - warmup) / (1.0 - warmup))) if warmup < 1 else 0.0
    shape = {"cosine": (1 - math.cos(math.pi * left)) / 2, "linear": left, "constant": 1.0}[config.schedule]
    return config.final_learning_rate + (1 - config.final_learning_rate) * shape


def set_learning_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set the learning rate of every parameter group to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["max_lr"] * factor
