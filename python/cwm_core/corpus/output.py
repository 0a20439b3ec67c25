"""A corpus on disk: traces and tokens in numbered parts, each there whole or not at all.

``traces/00000.cwmtraces`` and ``tokens/00000.cwmtok`` are for readers; ``progress.jsonl`` has a line for each part that
is finished, and ``sketches/`` what later samples are compared with. What a killed run left beyond the last finished
part is removed by the next, which makes it anew. A run that is interrupted finishes a smaller part; the next run makes
it whole, with the samples that it has.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..data import Shards, ShardWriter
from ..data.traces import TrainingDocument
from ..support.files import sync, write_file
from ..trace import Trace, TraceReader, TraceWriter
from .filters import DropCounts, Duplicates, Sketch
from .recording import NOT_IMPORTED, KeptSample, DroppedSample

_TRACES, _TOKENS, _SKETCHES = "traces", "tokens", "sketches"
_LENGTHS = struct.Struct("<III")


class Part(NamedTuple):
    """What `progress.jsonl` says of a part."""

    items: int
    """Items of the source done with it, those of earlier parts included."""
    shards: int
    """Token shards there are with it."""
    tokens: int
    """Tokens in the part."""
    by_clock: int
    """Samples dropped in the part because a clock said so: another run may keep them."""
    drops: dict[str, Any]
    """As of `DropCounts.to_json`, of the part alone."""
    interrupted: bool = False
    """Whether it is smaller than others because its run was interrupted; the next run makes it whole."""


@dataclass
class _Started:
    """What an interrupted run left of a part."""

    items: int = 0
    drops: DropCounts = field(default_factory=DropCounts)
    by_clock: int = 0
    kept: list[KeptSample] = field(default_factory=list)


class CorpusWriter:
    """Writes a corpus, or goes on with one; a context manager. One writer at a time has the folder."""

    def __init__(
        self, folder: str | os.PathLike[str], description: Mapping[str, Any], vocab_size: int, near: float
    ) -> None:
        """Open or make `folder`.

        `description` is what makes two corpora different, sources and settings, as JSON; `near` is the threshold of
        `Duplicates`.

        Raises BlockingIOError while another writer has it, ValueError where it holds a corpus of another description or
        its files are damaged, OSError if it cannot be written.
        """
        self.folder = Path(folder)
        self._vocab_size = vocab_size
        for name in (_TRACES, _TOKENS, _SKETCHES):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._lock = open(self.folder / "progress.jsonl", "a+b")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.parts = list(self._read_progress())
            self._describe(description)
            self._remove_unfinished()
            self._started = self._take_interrupted()
            self._duplicates = Duplicates(near)
            for number in range(len(self.parts)):
                for id, sketch in self._read_sketches(number):
                    self._duplicates.check(id, sketch)
        except BaseException:
            self._lock.close()
            raise

    @property
    def items(self) -> int:
        """Items of the source that are done."""
        return self.parts[-1].items if self.parts else 0

    @property
    def started(self) -> int:
        """Items of the next part that an interrupted run has done already."""
        return self._started.items

    @property
    def drops(self) -> DropCounts:
        """What was kept and dropped, and why, in all finished parts."""
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
        """Samples that a clock dropped, in all finished parts."""
        return sum(part.by_clock for part in self.parts)

    def add_part(self, samples: Iterator[KeptSample | DroppedSample], items: int, *, interrupted: bool = False) -> Part:
        """Write a part of samples, in the order of which duplicates are judged; `items` are done when it is there.

        It begins with the samples of an interrupted part, if the last run left one. With `interrupted` this is such a
        part, too.
        """
        if self._started.items:
            self._forget(len(self.parts))
            self._remove_unfinished()
        started = self._started
        number, shards = len(self.parts), self.parts[-1].shards if self.parts else 0
        drops, by_clock, tokens = DropCounts.from_json(started.drops.to_json()), started.by_clock, 0
        sketches: list[tuple[str, Sketch]] = []
        trace_path = self._path(_TRACES, number, "cwmtraces")
        with (
            TraceWriter(trace_path) as traces,
            ShardWriter(self.folder / _TOKENS, self._vocab_size, append=True) as shard,
        ):
            for sample in chain(started.kept, samples):
                drop = sample.drop if isinstance(sample, DroppedSample) else self._duplicates.check(sample.id, sample.sketch)
                drops.add(drop)
                by_clock += drop is not None and drop.reason == "limit of a clock"
                if drop is not None or isinstance(sample, DroppedSample):
                    continue
                traces.add(Trace.from_bytes(sample.stored), sample.id, **sample.metadata)
                ids, loss_mask, spans = sample.document
                shard.add(ids, loss_mask, source=str(sample.metadata["source"]), spans=spans)
                sketches.append((sample.id, sample.sketch))
                tokens += len(ids)
        self._write_sketches(number, sketches)
        shards = sum(1 for _ in (self.folder / _TOKENS).glob("*.cwmtok"))
        part = Part(items, shards, tokens, by_clock, drops.to_json(), interrupted)
        for name in (_TRACES, _TOKENS, _SKETCHES):
            sync(self.folder / name)
        described = part._asdict() if interrupted else {k: v for k, v in part._asdict().items() if k != "interrupted"}
        self._lock.write(json.dumps(described).encode() + b"\n")
        self._lock.flush()
        os.fsync(self._lock.fileno())
        self.parts.append(part)
        self._started = _Started()
        return part

    def _describe(self, description: Mapping[str, Any]) -> None:
        """Keep the description. One of a run that kept nothing does not bind the next run, which begins anew."""
        path = self.folder / "corpus.json"
        text = json.dumps(description, indent=2, sort_keys=True) + "\n"
        same = path.exists() and path.read_text(encoding="utf-8") == text
        reasons = self.drops.reasons.keys()
        if self.parts and self.drops.kept == 0 and (not same or reasons == {NOT_IMPORTED}):
            self._forget(0)
        if self.parts and not same:
            raise ValueError(
                f"{self.folder} holds a corpus of other sources or settings: see {path.name} there. "
                "Use its sources and settings to resume it, or another folder"
            )
        if not same:
            write_file(path, text)

    def _forget(self, parts: int) -> None:
        """Go back to so many parts; the files of later ones are removed as unfinished."""
        del self.parts[parts:]
        self._lock.seek(0)
        whole = sum(map(len, self._lock.read().splitlines(keepends=True)[:parts]))
        self._lock.truncate(whole)
        os.fsync(self._lock.fileno())

    def _take_interrupted(self) -> _Started:
        """Read the last part if an interrupted run finished it too early; its files stay until it is made whole."""
        if not self.parts or not self.parts[-1].interrupted:
            return _Started()
        part = self.parts.pop()
        number = len(self.parts)
        traces = list(TraceReader(self._path(_TRACES, number, "cwmtraces")).entries())
        shards = Shards(self.folder / _TOKENS) if traces else []
        documents = [shards[len(shards) - len(traces) + place] for place in range(len(traces))]
        sketches = list(self._read_sketches(number))
        kept = [
            KeptSample(id, trace.to_bytes(), TrainingDocument(d.tokens, d.loss_mask, d.spans), sketch, metadata)
            for (_, metadata, trace), d, (id, sketch) in zip(traces, documents, sketches, strict=True)
        ]
        drops = DropCounts.from_json(part.drops | {"kept": 0})  # they are counted again
        return _Started(part.items - self.items, drops, part.by_clock, kept)

    def _read_progress(self) -> Iterator[Part]:
        """The finished parts; a torn last line is cut."""
        self._lock.seek(0)
        whole = 0
        for number, line in enumerate(self._lock.read().splitlines(keepends=True)):
            if not line.endswith(b"\n"):
                break
            try:
                yield Part(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self._lock.name}, line {number + 1}: {error}") from None
            whole += len(line)
        self._lock.truncate(whole)

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
                raise ValueError(f"{path} is cut at byte {at}") from None
            body = data[at + _LENGTHS.size : at + _LENGTHS.size + length]
            if len(body) != length or zlib.crc32(body) != crc:
                raise ValueError(f"{path} is damaged at byte {at}")
            yield body[:key].decode("utf-8", "surrogatepass"), Sketch(body[key : key + 16], body[key + 16 :])
            at += _LENGTHS.size + length

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.close()

    def __enter__(self) -> Self:
        """The corpus itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()
