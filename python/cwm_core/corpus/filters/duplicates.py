"""Traces that are there already, exactly or nearly: MinHash with locality-sensitive hashing."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from typing import NamedTuple

from ...support import near_duplicates as near
from ...tokenizer.special_tokens import FRAME_SEP
from ...trace import Trace
from ..sample import Drop, Sample


class Sketch(NamedTuple):
    """What of a trace is compared; workers may make it and send it, as it can be pickled."""

    exact: bytes
    """A hash of 16 bytes of the text form."""
    near: bytes
    """The MinHash of the frames, in the form of the library that made it."""


def sketch(trace: Trace) -> Sketch:
    """The sketch of a trace. Raises ImportError without the extra `corpus`.

    Near duplicates are traces whose sets of two consecutive frames, as text, overlap. The context is left out: calls of
    two functions of one file are not alike because the file is shown. Frames show changes only, so that a variable
    that is another counts where it is set.
    """
    text = trace.to_text()
    exact = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Sketch(exact, near.to_bytes(near.sketch(_shingles(text[text.find(FRAME_SEP) :]))))


class Duplicates:
    """Drop a trace that equals, or nearly equals, one that was kept before; details name the one kept.

    Reasons: ``"duplicate"``, ``"near duplicate"``. Nearly equal are traces whose sketches' estimate of the Jaccard
    similarity is at least `threshold`; the estimate is off by some 0.04. Of pairs near 0.8 about one in twenty is
    missed, above 0.9 none in thousands.

    Who is kept depends on the order of the samples alone: give them in the order of their ids, whatever order workers
    made them in, and of each group the one with the smallest id stays, on every run. To go on after an interruption,
    `check` the ids and sketches that were kept, in their order.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """Nothing kept yet. Raises as `NearIndex`."""
        self._ids: list[str] = []
        self._exact: dict[bytes, int] = {}
        self._index = near.NearIndex(threshold)

    def __len__(self) -> int:
        """The number of traces kept."""
        return len(self._ids)

    def __call__(self, sample: Sample) -> Drop | None:
        """The reason to drop the sample; None where it is kept, and remembered."""
        return self.check(sample.id, sketch(sample.trace))

    def check(self, id: str, sketch: Sketch) -> Drop | None:
        """As a call with a sample, by its sketch."""
        if (kept := self._exact.get(sketch.exact)) is not None:
            return Drop("duplicate", self._ids[kept])
        made = near.from_bytes(sketch.near)
        if (found := self._index.find(made)) is not None:
            return Drop("near duplicate", self._ids[found])
        self._exact[sketch.exact] = self._index.add(made)
        self._ids.append(id)
        return None


def _shingles(text: str) -> Iterator[str]:
    """Two consecutive frames each; a trace of one frame has that."""
    frames = text.split(FRAME_SEP)[1:]
    return ("\0".join(pair) for pair in pairwise(frames)) if len(frames) > 1 else iter(frames)
