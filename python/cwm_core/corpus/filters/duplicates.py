"""Find traces that equal, or nearly equal, earlier ones: MinHash with locality-sensitive hashing."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

from ...support import near_duplicates as near
from ...tokenizer.special_tokens import FRAME_SEP
from ...trace import Trace
from ..reasons import DropReason
from ..sample import Drop, Sample


class Sketch(NamedTuple):
    """Hashes of a trace for comparison. A sketch can be pickled and sent between processes."""

    exact: bytes
    """Hash of 16 bytes of the text form."""
    near: bytes
    """MinHash of the frames, in the format of the library that computed it."""


def sketch(trace: Trace) -> Sketch:
    """Return the sketch of a trace.

    Near duplicates are traces whose sets of pairs of consecutive frames, as text, overlap. The context is left out, so
    calls of two functions of one file are not similar because of the file. Frames show changes only, so a variable with
    another value counts where it is set.

    Raises:
        ImportError: The extra `corpus` is not installed.
    """
    text = trace.to_text()
    exact = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Sketch(exact, near.to_bytes(near.sketch(_shingles(text[text.find(FRAME_SEP) :]))))


class Duplicates:
    """Drops a trace that equals, or nearly equals, a trace that was kept before. The detail names the kept one.

    The reasons are `DUPLICATE` and `NEAR_DUPLICATE`. Two traces are nearly equal if the estimated Jaccard similarity of
    their sketches is at least `threshold`. The standard error of the estimate is about 0.04. About one of twenty pairs
    near 0.8 is missed, and none of thousands above 0.9.

    The first sample of each group stays. Pass samples in the order of their ids, not in the order in which processes
    made them, so that the smallest id of each group stays in every run. To resume, `check` the ids and sketches that
    were kept, in their order.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """Start with no traces; raise what `NearIndex` raises."""
        self._ids: list[str] = []
        self._exact: dict[bytes, int] = {}
        self._index = near.NearIndex(threshold)

    def __len__(self) -> int:
        """Return the number of traces kept."""
        return len(self._ids)

    def __call__(self, sample: Sample) -> Drop | None:
        """Return why to drop the sample, or None to keep and remember it."""
        return self.check(sample.id, sketch(sample.trace))

    def check(self, id: str, sketch: Sketch) -> Drop | None:
        """Do the same for a sample that is given by its id and sketch."""
        if (kept := self._exact.get(sketch.exact)) is not None:
            return Drop(DropReason.DUPLICATE, self._ids[kept])
        made = near.from_bytes(sketch.near)
        if (found := self._index.find(made)) is not None:
            return Drop(DropReason.NEAR_DUPLICATE, self._ids[found])
        self._exact[sketch.exact] = self._index.add(made)
        self._ids.append(id)
        return None


def _shingles(text: str) -> Iterator[str]:
    """Yield each pair of consecutive frames. A trace of one frame yields that frame."""
    frames = text.split(FRAME_SEP)[1:]
    return ("\0".join(pair) for pair in pairwise(frames)) if len(frames) > 1 else iter(frames)
