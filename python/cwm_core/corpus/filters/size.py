"""Traces that are too short, too long, or of a program that did not end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...trace import Trace
from ..sample import Drop, Sample


def terminates(sample: Sample) -> Drop | None:
    """Drop a trace that a limit of the recorder cut; reason ``"truncated"``."""
    limit = sample.trace.truncated
    return None if limit is None else Drop("truncated", limit)


@dataclass(frozen=True)
class SizeLimits:
    """Drop traces outside limits; None for no limit.

    Reasons: ``"too few frames"``, ``"too many frames"``, ``"too many bytes"`` (of the stored form), ``"too many
    tokens"`` (of the whole document).
    """

    min_frames: int = 1
    max_frames: int | None = None
    max_bytes: int | None = None
    max_tokens: int | None = None
    count_tokens: Callable[[Trace], int] | None = None
    """Counts the tokens of a trace, as ``lambda trace: len(tokenizer.encode_trace(trace))``."""

    def __post_init__(self) -> None:
        """Raises ValueError for `max_tokens` without `count_tokens`."""
        if self.max_tokens is not None and self.count_tokens is None:
            raise ValueError("max_tokens needs count_tokens")

    def __call__(self, sample: Sample) -> Drop | None:
        """The first limit that the trace is outside of, the cheapest looked at first."""
        frames = len(sample.trace)
        if frames < self.min_frames:
            return Drop("too few frames", f"{frames} < {self.min_frames}")
        if self.max_frames is not None and frames > self.max_frames:
            return Drop("too many frames", f"{frames} > {self.max_frames}")
        if self.max_bytes is not None and (size := len(sample.trace.to_bytes())) > self.max_bytes:
            return Drop("too many bytes", f"{size} > {self.max_bytes}")
        if self.max_tokens is not None and self.count_tokens is not None:
            tokens = self.count_tokens(sample.trace)
            if tokens > self.max_tokens:
                return Drop("too many tokens", f"{tokens} > {self.max_tokens}")
        return None
