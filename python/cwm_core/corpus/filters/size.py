"""Drop traces that are too short or too long, or whose program did not end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...trace import Trace
from ..reasons import DropReason
from ..sample import Drop, Sample


def terminates(sample: Sample) -> Drop | None:
    """Drop a trace that a limit of the recorder cut; the reason is `TRUNCATED`."""
    limit = sample.trace.truncated
    return None if limit is None else Drop(DropReason.TRUNCATED, limit)


@dataclass(frozen=True)
class SizeLimits:
    """Drops traces outside limits.

    The reasons are `TOO_FEW_FRAMES`, `TOO_MANY_FRAMES`, `TOO_MANY_BYTES`, and `TOO_MANY_TOKENS`.

    Raises:
        ValueError: `max_tokens` is set without `count_tokens`.
    """

    min_frames: int = 1
    """Frames that a trace must have."""
    max_frames: int | None = None
    """Maximum number of frames; None for no limit."""
    max_bytes: int | None = None
    """Maximum size of the stored trace in bytes; None for no limit."""
    max_tokens: int | None = None
    """Maximum number of tokens in the whole document; None for no limit."""
    count_tokens: Callable[[Trace], int] | None = None
    """Function that returns the number of tokens of a trace, such as `lambda trace:
    len(tokenizer.encode_trace(trace))`.
    """

    def __post_init__(self) -> None:
        """Check that tokens can be counted."""
        if self.max_tokens is not None and self.count_tokens is None:
            raise ValueError("max_tokens needs count_tokens")

    def __call__(self, sample: Sample) -> Drop | None:
        """Return the first limit that the trace breaks, or None. The cheapest limit comes first."""
        frames = len(sample.trace)
        if frames < self.min_frames:
            return Drop(DropReason.TOO_FEW_FRAMES, f"{frames} < {self.min_frames}")
        if self.max_frames is not None and frames > self.max_frames:
            return Drop(DropReason.TOO_MANY_FRAMES, f"{frames} > {self.max_frames}")
        if self.max_bytes is not None and (size := len(sample.trace.to_bytes())) > self.max_bytes:
            return Drop(DropReason.TOO_MANY_BYTES, f"{size} > {self.max_bytes}")
        if self.max_tokens is not None and self.count_tokens is not None:
            tokens = self.count_tokens(sample.trace)
            if tokens > self.max_tokens:
                return Drop(DropReason.TOO_MANY_TOKENS, f"{tokens} > {self.max_tokens}")
        return None
