"""Write a corpus to disk: traces and tokens in numbered parts, each complete or not there.

- `traces/00000.cwmtraces` and `tokens/00000.cwmtok` are for readers.
- `progress.jsonl` has a line for each finished part.
- `sketches/` holds what later samples are compared with.
- `corpus.json` describes the sources and the settings.

The next run removes what a killed run left beyond the last finished part, and makes that part again. An interrupted run
writes a smaller part; the next run completes it with the samples that it has.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from .._native import DamagedFileError
from ..data import Shards, ShardWriter
from ..data.traces import TrainingDocument
from ..support.files import sync, write_file
from ..support.log import ResumableLog
from ..trace import Trace, TraceReader, TraceWriter
from .filters import DropCounts, Duplicates, Sketch
from .reasons import DropReason
from .recording import DroppedSample, KeptSample

_TRACES, _TOKENS, _SKETCHES = "traces", "tokens", "sketches"
_LENGTHS = struct.Struct("<III")


class CorpusPart(NamedTuple):
    """A line of `progress.jsonl`."""

    items: int
    """Items of the source that are done with this part and all earlier ones."""
    shards: int
    """Token shards with this part and all earlier ones."""
    tokens: int
    """Tokens in the part."""
    by_clock: int
    """Samples of the part that a time limit dropped. Another run may keep them."""
    drops: dict[str, Any]
    """Samples kept and dropped in the part, as in `DropCounts.to_json`."""
    interrupted: bool = False
    """True if the part is smaller than others because its run was interrupted. The next run completes it."""


@dataclass
class _StartedPart:
    """A part that an interrupted run began."""

    items: int = 0
    drops: DropCounts = field(default_factory=DropCounts)
    by_clock: int = 0
    kept: list[KeptSample] = field(default_factory=list)


class CorpusWriter:
    """Writes a corpus or resumes one; a context manager. One writer at a time has the folder."""

    def __init__(
        self, folder: str | os.PathLike[str], description: Mapping[str, Any], vocab_size: int, near: float
    ) -> None:
        """Open a folder and create it if it does not exist.

        Args:
            folder: Folder of the corpus.
            description: Sources and settings that distinguish corpora, as JSON.
            vocab_size: Size of the vocabulary of the token shards.
            near: Threshold of `Duplicates`.

        Raises:
            BlockingIOError: Another writer has the folder.
            ValueError: The folder holds a corpus with another description.
            DamagedFileError: A file of the corpus is damaged.
            OSError: The folder cannot be written.
        """
        self.folder = Path(folder)
        self._vocab_size = vocab_size
        for name in (_TRACES, _TOKENS, _SKETCHES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._log = ResumableLog(self.folder / "progress.jsonl")
        try:
            self.parts = list(self._read_parts())
            self._describe(description)
            self._remove_unfinished()
            self._started = self._take_interrupted()
            self._duplicates = Duplicates(near)
            for number in range(len(self.parts)):
                for id, sketch in self._read_sketches(number):
                    self._duplicates.check(id, sketch)
        except BaseException:
            self._log.close()
            raise

    @property
    def items(self) -> int:
        """Items of the source that are done."""
        return self.parts[-1].items if self.parts else 0

    @property
    def started(self) -> int:
        """Items of the next part that an interrupted run has done."""
        return self._started.items

    @property
    def drops(self) -> DropCounts:
        """Samples kept and dropped in all finished parts, by reason."""
        total = DropCounts()
        for part in self.parts:
            total.merge(DropCounts.from_json(part.drops))
        return total

    @property
    def tokens(self) -> int:
        """Tokens in all finished parts."""
        return sum(part.tokens for part in self.parts)

    @property
    def by_clock(self) -> int:
        """Samples that a time limit dropped in all finished parts."""
        return sum(part.by_clock for part in self.parts)

    def add_part(
        self, samples: Iterator[KeptSample | DroppedSample], items: int, *, interrupted: bool = False
    ) -> CorpusPart:
        """Write a part. It begins with the samples of the part that an interrupted run began, if there is one.

        Args:
            samples: Samples of the part. Their order decides which of several duplicates stays.
            items: Items of the source that are done with this part.
            interrupted: Write a smaller part for the next run to complete.
        """
        if self._started.items:
            self._forget(len(self.parts))
            self._remove_unfinished()
        started = self._started
        number = len(self.parts)
        drops, by_clock, tokens = DropCounts.from_json(started.drops.to_json()), started.by_clock, 0
        sketches: list[tuple[str, Sketch]] = []
        trace_path = self._path(_TRACES, number, "cwmtraces")
        with (
            TraceWriter(trace_path) as traces,
            ShardWriter(self.folder / _TOKENS, self._vocab_size, append=True) as shard,
        ):
            for sample in chain(started.kept, samples):
                if isinstance(sample, DroppedSample):
                    drops.add(sample.drop)
                    by_clock += sample.drop.reason == DropReason.CLOCK
                    continue
                duplicate = self._duplicates.check(sample.id, sample.sketch)
                drops.add(duplicate)
                if duplicate is not None:
                    continue
                traces.add(Trace.from_bytes(sample.stored), sample.id, **sample.metadata)
                ids, loss_mask, spans = sample.document
                shard.add(ids, loss_mask, source=str(sample.metadata["source"]), spans=spans)
                sketches.append((sample.id, sample.sketch))
                tokens += len(ids)
        self._write_sketches(number, sketches)
        shards = sum(1 for _ in (self.folder / _TOKENS).glob("*.cwmtok"))
        part = CorpusPart(items, shards, tokens, by_clock, drops.to_json(), interrupted)
        for name in (_TRACES, _TOKENS, _SKETCHES):
            sync(self.folder / name)
        self._log.append({name: value for name, value in part._asdict().items() if name != "interrupted" or value})
        self.parts.append(part)
        self._started = _StartedPart()
        return part

    def _describe(self, description: Mapping[str, Any]) -> None:
        """Write the description. The description of a run that kept nothing does not bind the next run."""
        path = self.folder / "corpus.json"
        text = json.dumps(description, indent=2, sort_keys=True) + "\n"
        same = path.exists() and path.read_text(encoding="utf-8") == text
        reasons = self.drops.reasons.keys()
        if self.parts and self.drops.kept == 0 and (not same or reasons == {DropReason.NOT_IMPORTED}):
            self._forget(0)
        if self.parts and not same:
            raise ValueError(
                f"{self.folder} holds a corpus of other sources or settings: see {path.name} there. "
                "Use its sources and settings to resume it, or another folder"
            )
        if not same:
            write_file(path, text)

    def _forget(self, parts: int) -> None:
        """Go back to the first `parts` parts. The files of later ones are then unfinished."""
        del self.parts[parts:]
        self._log.keep(parts)

    def _take_interrupted(self) -> _StartedPart:
        """Read the last part if it was interrupted. Its files stay until the part is complete."""
        if not self.parts or not self.parts[-1].interrupted:
            return _StartedPart()
        part = self.parts.pop()
        number = len(self.parts)
        traces = list(TraceReader(self._path(_TRACES, number, "cwmtraces")).entries())
        documents = self._last_documents(len(traces))
        sketches = list(self._read_sketches(number))
        kept = [
            KeptSample(id, trace.to_bytes(), document, sketch, metadata)
            for (_, metadata, trace), document, (id, sketch) in zip(traces, documents, sketches, strict=True)
        ]
        drops = DropCounts.from_json(part.drops | {"kept": 0})  # `add_part` counts them again
        return _StartedPart(part.items - self.items, drops, part.by_clock, kept)

    def _last_documents(self, count: int) -> list[TrainingDocument]:
        if count == 0:  # there may be no shards at all
            return []
        shards = Shards(self.folder / _TOKENS)
        last = (shards[len(shards) - count + place] for place in range(count))
        return [
            TrainingDocument(
                document.tokens,
                document.loss_mask,
                {label: spans.astype(np.int32) for label, spans in document.spans.items()},
            )
            for document in last
        ]

    def _read_parts(self) -> Iterator[CorpusPart]:
        for number, row in enumerate(self._log.rows(), 1):
            try:
                yield CorpusPart(**row)
            except TypeError as error:
                path = self.folder / "progress.jsonl"
                raise DamagedFileError(f"{path}, line {number}: expected a part of a corpus: {error}") from None

    def _remove_unfinished(self) -> None:
        limits = {_TRACES: len(self.parts), _SKETCHES: len(self.parts)}
        limits[_TOKENS] = self.parts[-1].shards if self.parts else 0
        for name, limit in limits.items():
            for path in (self.folder / name).iterdir():
                if not path.stem.isdecimal() or int(path.stem) >= limit:
                    path.unlink()

    def _path(self, name: str, number: int, suffix: str) -> Path:
        return self.folder / name / f"{number:05}.{suffix}"

    def _write_sketches(self, number: int, sketches: list[tuple[str, Sketch]]) -> None:
        path = self._path(_SKETCHES, number, "bin")
        with open(path, "wb") as file:
            for id, sketch in sketches:
                key = id.encode("utf-8", "surrogatepass")
                body = key + sketch.exact + sketch.near
                file.write(_LENGTHS.pack(len(key), len(body), zlib.crc32(body)) + body)
        sync(path)

    def _read_sketches(self, number: int) -> Iterator[tuple[str, Sketch]]:
        path = self._path(_SKETCHES, number, "bin")
        data = path.read_bytes()
        at = 0
        while at < len(data):
            try:
                key, length, crc = _LENGTHS.unpack_from(data, at)
            except struct.error:
                raise DamagedFileError(f"{path} is cut at byte {at}") from None
            body = data[at + _LENGTHS.size : at + _LENGTHS.size + length]
            if len(body) != length or zlib.crc32(body) != crc:
                raise DamagedFileError(f"{path} is damaged at byte {at}")
            yield body[:key].decode("utf-8", "surrogatepass"), Sketch(body[key : key + 16], body[key + 16 :])
            at += _LENGTHS.size + length

    def close(self) -> None:
        """Release the folder."""
        self._log.close()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the writer."""
        self.close()
