"""Metrics of a training step."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..model import ModelConfig
from ..model.flops import training_flops


@dataclass(frozen=True)
class Progress:
    """Metrics of one optimizer step over all ranks."""

    step: int
    """Steps taken, including this one."""
    loss: float
    """Mean cross entropy in nats over the loss tokens of the step, before its update."""
    losses: dict[str, float]
    """Mean cross entropy by source, without sources that have no loss tokens in this step."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of AdamW in this step."""
    tokens: int
    """Tokens that the model reads in this step, including padding."""
    loss_tokens: int
    """Tokens with loss in this step."""
    tokens_per_second: float
    """`tokens` divided by `step_seconds`."""
    mfu: float | None
    """Model FLOP utilization (arXiv 2204.02311): `training_flops` of the step's documents as a share of the peak of all
    GPUs; None if the peak of the device is unknown."""
    memory: int
    """Largest memory of any rank in bytes: on a GPU the most allocated in this step, on a CPU the most resident so
    far."""
    data_wait: float
    """Seconds that the slowest rank waits for the loader in this step."""
    step_seconds: float
    """Seconds since the end of the previous step."""
    seconds: float
    """Training time in seconds over all resumes."""
    fraction: float
    """Completed share of the run, from 0 to 1."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further metrics by name, of runs with an objective of their own."""


@dataclass
class Sums:
    """Loss and loss tokens of a step, in total and by source, accumulated on the device."""

    sources: Sequence[str]
    device: torch.device
    _values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Start at zero."""
        # Row 0 is everything, row i + 1 source i; columns are the summed loss and its tokens.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._values = torch.zeros(1 + len(self.sources), 2, dtype=dtype, device=self.device)

    def add(self, losses: Tensor, mask: Tensor, sources: Tensor | None) -> None:
        """Add the `losses` where `mask` is true.

        Args:
            losses: Loss of each position.
            mask: Positions with loss, in the shape of `losses`.
            sources: Number of each position's source, in the shape of `losses`; None: only totals are counted.
        """
        values = torch.stack((losses.flatten(), mask.flatten()), -1).to(self._values.dtype)
        self._values[0] += values.sum(0)
        if sources is not None and self.sources:
            # Padding has source -1 and no loss.
            self._values[1:].index_add_(0, sources.flatten().clamp(min=0), values)

    def values(self) -> Tensor:
        """Return all sums as one vector, to be summed over ranks."""
        return self._values.flatten()

    def means(self, values: list[float]) -> tuple[float, dict[str, float]]:
        """Return the mean loss in total and by source from such a vector."""
        pairs = list(zip(values[::2], values[1::2], strict=True))
        (total, count), *rest = pairs
        by_source = {name: loss / tokens for name, (loss, tokens) in zip(self.sources, rest, strict=True) if tokens}
        return total / max(1.0, count), by_source


def position_sources(batch: Any) -> Tensor | None:
    """Return the source number of each position in the shape of `batch.tokens`; None if the batch has no sources."""
    source_ids = getattr(batch, "source_ids", None)
    if source_ids is None:
        return None
    lengths = batch.cu_seqlens.diff()
    positions: Tensor = source_ids.long().repeat_interleave(lengths, output_size=batch.tokens.numel())
    return positions.view(batch.tokens.shape)


def batch_flops(config: ModelConfig, batch: Any) -> float:
    """Return `training_flops` of the documents of a batch, without padding. Fastest before the batch is on a GPU."""
    lengths = batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]
    source_ids = getattr(batch, "source_ids", None)
    if source_ids is not None:
        lengths = lengths[source_ids >= 0]
    return training_flops(config, lengths.tolist(), int(batch.loss_mask.sum()), getattr(batch, "global_window", None))


def peak_memory(device: torch.device) -> int:
    """Return `Progress.memory` of this rank; on a GPU, the peak since the last call."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
