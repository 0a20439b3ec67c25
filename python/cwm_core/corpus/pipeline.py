"""Making a corpus: items through a pool of recording processes into numbered parts, to be resumed at any moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

from ..support import secrets
from ..support.pool import Pool, in_order
from ..tokenizer import Tokenizer
from .filters import DropCounts
from .output import CorpusWriter
from .recording import KeptSample, DroppedSample, SampleRecorder, CorpusSettings
from .sample import Sample
from .unit import Unit

Item = TypeVar("Item")

Work = Callable[[Sequence[Any], SampleRecorder], list[KeptSample | DroppedSample]]
"""What becomes of items, in a recording process: the place for what takes long.

Where it has an attribute `secrets`, names of variables, their values are sent to the processes apart from it."""

ChunkResult = tuple[int, list[KeptSample | DroppedSample]]
"""How many items there were, and what became of them."""

PART_ITEMS = 1024
"""Items of the source in a part: what a killed run loses at most. One that is interrupted keeps what it has."""
CHUNK_ITEMS = 16
"""Items that a process takes at a time."""


@dataclass(frozen=True)
class Summary:
    """What a corpus has."""

    items: int
    tokens: int
    by_clock: int
    """Samples dropped because a clock said so: another run may keep them, and differ in that."""
    drops: DropCounts


def record_units(units: Sequence[Unit], recording: SampleRecorder) -> list[KeptSample | DroppedSample]:
    """`Work` for items that are units."""
    return recording.samples(units)


def judge_samples(samples: Sequence[Sample], recording: SampleRecorder) -> list[KeptSample | DroppedSample]:
    """`Work` for items that were recorded already."""
    return [recording.judged(sample) for sample in samples]


def make_corpus(
    folder: str | os.PathLike[str],
    items: Iterable[Any],
    settings: CorpusSettings,
    *,
    description: Mapping[str, Any],
    work: Work = record_units,
    pool: Pool,
    progress: Callable[[Summary], None] = lambda summary: None,
    watch: Callable[[int], None] = lambda items: None,
    part_items: int = PART_ITEMS,
    chunk_items: int = CHUNK_ITEMS,
) -> Summary:
    """Record what the items hold and keep what passes the filters, in `folder`; see `output.py`.

    Goes on where an earlier run ended, by whatever: the corpus is the same as of one run, and the same for every pool.
    `items` must come in the same order then, and `description` say what they are, in JSON: it is kept in the folder
    with the settings, and compared. A process takes `chunk_items` at a time, which makes no difference to the corpus.
    `work` and items are pickled, for pools of several processes. `progress` is called after each part, `watch` with the
    number of items that are done after each chunk.

    Ctrl-C (KeyboardInterrupt) finishes a smaller part with what there is, reports it to `progress`, and is raised.

    Raises as `Corpus`, `Recording`, `RecordingSandbox` and `work`; finished parts stay.
    """
    vocab_size = Tokenizer.load(settings.tokenizer).vocab_size
    described = {"items": dict(description), "settings": _as_json(settings), "part_items": part_items}
    with CorpusWriter(folder, described, vocab_size, settings.near_duplicates) as corpus:
        part: list[ChunkResult] = []
        left = islice(iter(items), corpus.items + corpus.started, None)
        chunks = _in_chunks(left, chunk_items, part_items, corpus.started)
        sent = secrets.read(getattr(work, "secrets", ()))
        results = in_order(pool, partial(_results_of, settings, work), chunks, sent)

        def finish(*, interrupted: bool = False) -> None:
            done = corpus.items + corpus.started + _count(part)
            with _uninterrupted():
                corpus.add_part(chain.from_iterable(samples for _, samples in part), done, interrupted=interrupted)
                part.clear()

        try:
            for result in results:
                part.append(result)
                watch(corpus.items + corpus.started + _count(part))
                if corpus.started + _count(part) >= part_items:
                    finish()
                    progress(_summary(corpus))
            if part or corpus.started:
                finish()
                progress(_summary(corpus))
        except KeyboardInterrupt:
            if part or corpus.started:
                finish(interrupted=True)
            progress(_summary(corpus))
            raise
        finally:
            _end_recording()
        return _summary(corpus)


def _summary(corpus: CorpusWriter) -> Summary:
    return Summary(corpus.items, corpus.tokens, corpus.by_clock, corpus.drops)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait until the block is done, in the thread that it would interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    previous = signal.signal(signal.SIGINT, lambda *arguments: came.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if came and callable(previous):
            previous(*came[0])


def _count(part: Iterable[ChunkResult]) -> int:
    return sum(items for items, _ in part)


def _in_chunks(items: Iterator[Item], size: int, part_items: int, taken: int) -> Iterator[list[Item]]:
    """Chunks of items that do not cross the ends of parts, of which the first has so many items already."""
    while chunk := list(islice(items, min(size, part_items - taken))):
        taken = (taken + len(chunk)) % part_items
        yield chunk


def _results_of(settings: CorpusSettings, work: Work, items: list[Any]) -> tuple[int, list[KeptSample | DroppedSample]]:
    """In a recording process: how many items these were, and what became of them."""
    return len(items), work(items, _recording(settings))


def _recording(settings: CorpusSettings) -> SampleRecorder:
    """The one of this process, whose sandboxes serve one chunk after the other."""
    if _OfProcess.recording is None or _OfProcess.recording.settings != settings:
        _end_recording()
        _OfProcess.recording = SampleRecorder(settings)
    return _OfProcess.recording


def _end_recording() -> None:
    """End this process's sandboxes, if it has any: in a pool's processes they end with these."""
    if _OfProcess.recording is not None:
        _OfProcess.recording.close()
        _OfProcess.recording = None


class _OfProcess:
    """What a recording process keeps from one chunk to the next."""

    recording: SampleRecorder | None = None


def _as_json(settings: CorpusSettings) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    values["limits"] = {field.name: getattr(settings.limits, field.name) for field in fields(settings.limits)}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}
