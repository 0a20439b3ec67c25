"""Traces that are there already, exactly or nearly: MinHash with locality-sensitive hashing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from ...durable import sync
from ...trace import Trace
from ..sample import Drop, Sample
from .extra import missing_extra

_HASHES = 128
_SEED = 42
_FORMAT = 1


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
    minhash = _minhash()
    minhash.update(_shingles(text[text.find("<|frame_sep|>") :]))
    return Sketch(exact, minhash.__getstate__())


class Duplicates:
    """Drop a trace that equals, or nearly equals, one that was kept before; details name the one kept.

    Reasons: ``"duplicate"``, ``"near duplicate"``. Nearly equal are traces whose sketches' estimate of the Jaccard
    similarity is at least `threshold`; the estimate is off by some 0.04. Of pairs near 0.8 about one in twenty is
    missed, above 0.9 none in thousands.

    Who is kept depends on the order of the samples alone: give them in the order of their ids, whatever order workers
    made them in, and of each group the one with the smallest id stays, on every run.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """Nothing kept yet. Raises ValueError for a threshold outside (0, 1], ImportError without the extra."""
        if not 0 < threshold <= 1:
            raise ValueError(f"the threshold is to be above 0 and at most 1, not {threshold}")
        self.threshold = threshold
        self._ids: list[str] = []
        self._exact: dict[bytes, int] = {}
        self._near: list[bytes] = []
        # As many bands as find a pair at the threshold in 94 of 100 cases: 1 - (1 - s^rows)^bands.
        bands = next((b for b in (8, 16, 32, 64) if 1 - (1 - threshold ** (_HASHES // b)) ** b >= 0.94), _HASHES)
        self._index = _library().RMinHashLSH(threshold=threshold, num_perm=_HASHES, num_bands=bands)

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
        minhash = _minhash(sketch.near)
        # The first kept, not the nearest, so that the answer does not depend on the order of the library's answer.
        for candidate in sorted(self._index.query(minhash)):
            if minhash.jaccard(_minhash(self._near[candidate])) >= self.threshold:
                return Drop("near duplicate", self._ids[candidate])
        self._keep(id, sketch, minhash)
        return None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what is kept to a file, whole or not at all. Raises OSError when that fails."""
        head = {"format": _FORMAT, "algorithm": _algorithm(), "threshold": self.threshold, "ids": self._ids}
        target = Path(path)
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                np.savez(
                    file,
                    head=np.frombuffer(json.dumps(head).encode(), np.uint8),
                    exact=np.frombuffer(b"".join(self._exact), np.uint8),
                    near=np.frombuffer(b"".join(self._near), np.uint8),
                    lengths=np.array([len(near) for near in self._near], np.int64),
                )
            sync(partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
        sync(target.parent)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Duplicates:
        """Read what `save` wrote. Raises OSError when it cannot be read, ValueError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                head = json.loads(file["head"].tobytes())
                exact, near, lengths = file["exact"].tobytes(), file["near"].tobytes(), file["lengths"].tolist()
            if (head["format"], head["algorithm"]) != (_FORMAT, _algorithm()):
                raise ValueError("made by another version")
            ids = head["ids"]
            if not len(exact) == 16 * len(ids) == 16 * len(lengths) or min(lengths, default=0) < 0:
                raise ValueError("its parts do not fit together")
            loaded, at = cls(head["threshold"]), 0
            for number, (id, length) in enumerate(zip(ids, lengths, strict=True)):
                one = Sketch(exact[16 * number : 16 * number + 16], near[at : at + length])
                loaded._keep(str(id), one, _minhash(one.near))
                at += length
            return loaded
        except (ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)}: no state of kept traces: {error}") from None

    def _keep(self, id: str, sketch: Sketch, minhash: Any) -> None:
        self._index.insert(len(self._ids), minhash)
        self._exact[sketch.exact] = len(self._ids)
        self._ids.append(id)
        self._near.append(sketch.near)


def _shingles(text: str) -> Iterator[str]:
    """Two consecutive frames each; a trace of one frame has that."""
    frames = text.split("<|frame_sep|>")[1:]
    return ("\0".join(pair) for pair in pairwise(frames)) if len(frames) > 1 else iter(frames)


def _library() -> Any:
    try:
        import rensa
    except ImportError as error:
        raise missing_extra("looking for near duplicates", error) from None
    return rensa


def _algorithm() -> int:
    return int(_library().RMinHash.ALGORITHM_VERSION)


def _minhash(state: bytes | None = None) -> Any:
    minhash = _library().RMinHash(num_perm=_HASHES, seed=_SEED)
    if state is not None:
        minhash.__setstate__(state)
    return minhash
