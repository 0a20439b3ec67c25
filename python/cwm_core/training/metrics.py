"""What a training step is measured by."""

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
    """What one optimizer step did, over all ranks."""

    step: int
    """Steps taken so far, this one included."""
    loss: float
    """Mean cross entropy in nats over the step's tokens with loss, before its update."""
    losses: dict[str, float]
    """The same by name of the tokens' source; without those that had none in this step."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens the model read in this step, padding included."""
    loss_tokens: int
    """Of them, those with loss."""
    tokens_per_second: float
    mfu: float | None
    """Model FLOP utilization (arXiv 2204.02311): the `training_flops` of the step's documents, as a share of what the
    GPUs could do in its time; None where the peak of the device is not known."""
    memory: int
    """Bytes, most of any rank: the most allocated on its GPU in the step; on a CPU, the most the process ever had."""
    data_wait: float
    """Seconds of the step in which the slowest rank waited for the loader."""
    step_seconds: float
    """Since the end of the step before."""
    seconds: float
    """Training time so far, over all resumes."""
    fraction: float
    """Of the run, from 0 to 1."""


@dataclass
class Sums:
    """Loss and tokens with loss of a step, in all and by source, on the device until someone asks."""

    sources: Sequence[str]
    device: torch.device
    _values: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Begin at zero."""
        # Row 0 is everything, row i + 1 source i; columns are the summed loss and its tokens.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self._values = torch.zeros(1 + len(self.sources), 2, dtype=dtype, device=self.device)

    def add(self, losses: Tensor, mask: Tensor, sources: Tensor | None) -> None:
        """Count `losses` where `mask`, both of any equal shape; `sources`, of that shape too, are their numbers."""
        values = torch.stack((losses.flatten(), mask.flatten()), -1).to(self._values.dtype)
        self._values[0] += values.sum(0)
        if sources is not None and self.sources:
            # Padding has source -1 and no loss.
            self._values[1:].index_add_(0, sources.flatten().clamp(min=0), values)

    def values(self) -> Tensor:
        """All of them as one vector, to be summed over ranks."""
        return self._values.flatten()

    def means(self, values: list[float]) -> tuple[float, dict[str, float]]:
        """Mean loss in all and by source, of such a vector."""
        pairs = list(zip(values[::2], values[1::2], strict=True))
        (total, count), *rest = pairs
        by_source = {name: loss / tokens for name, (loss, tokens) in zip(self.sources, rest, strict=True) if tokens}
        return total / max(1.0, count), by_source


def position_sources(batch: Any) -> Tensor | None:
    """Number of each position's source, integers of the shape of `batch.tokens`; None for a batch that knows none."""
    source_ids = getattr(batch, "source_ids", None)
    if source_ids is None:
        return None
    lengths = batch.cu_seqlens.diff()
    positions = source_ids.long().repeat_interleave(lengths, output_size=batch.tokens.numel())
    return positions.view(batch.tokens.shape)


def batch_flops(config: ModelConfig, batch: Any) -> float:
    """`training_flops` of the documents of a batch, without its padding; cheapest before the batch is on a device."""
    lengths = batch.cu_seqlens[1:] - batch.cu_seqlens[:-1]
    source_ids = getattr(batch, "source_ids", None)
    if source_ids is not None:
        lengths = lengths[source_ids >= 0]
    return training_flops(config, lengths.tolist(), int(batch.loss_mask.sum()), getattr(batch, "global_window", None))


def peak_memory(device: torch.device) -> int:
    """What `Progress.memory` is on one rank; on a GPU, since the last call."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
