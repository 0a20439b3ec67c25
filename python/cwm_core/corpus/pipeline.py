"""Make a corpus: send items through a pool of recording processes into numbered parts. Can resume at any moment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from ..support import secrets
from ..support.pool import Pool, in_order
from ..tokenizer import Tokenizer
from .filters import DropCounts
from .output import CorpusWriter
from .recording import CorpusSettings, DroppedSample, KeptSample, SampleRecorder
from .sample import Filter, Sample
from .unit import Unit

Item = TypeVar("Item")

Work = Callable[[Sequence[Any], SampleRecorder], list[KeptSample | DroppedSample]]
"""Turns items into samples, in a recording process: the place for slow work.

If it has an attribute `secrets` with names of environment variables, their values are sent to the processes apart from
it."""

ChunkResult = tuple[int, list[KeptSample | DroppedSample]]
"""Number of items, and their samples."""

PART_ITEMS = 1024
"""Items in a part: the most that a killed run loses. An interrupted run keeps what is done."""
CHUNK_ITEMS = 16
"""Items that a process takes at a time."""


@dataclass(frozen=True)
class Summary:
    """Contents of a corpus."""

    items: int
    """Items of the source that are done."""
    tokens: int
    """Tokens in all parts."""
    by_clock: int
    """Samples that a time limit dropped. Another run may keep them and so differ in them."""
    drops: DropCounts
    """Samples kept and dropped, by reason."""


def record_units(units: Sequence[Unit], recorder: SampleRecorder) -> list[KeptSample | DroppedSample]:
    """Record items that are units; a `Work`."""
    return recorder.record(units)


def filter_samples(samples: Sequence[Sample], recorder: SampleRecorder) -> list[KeptSample | DroppedSample]:
    """Filter items that are recorded samples; a `Work`."""
    return [recorder.filter(sample) for sample in samples]


def make_corpus(
    folder: str | os.PathLike[str],
    items: Iterable[Any],
    settings: CorpusSettings,
    *,
    description: Mapping[str, Any],
    work: Work = record_units,
    filters: Iterable[Filter] = (),
    pool: Pool,
    progress: Callable[[Summary], None] = lambda summary: None,
    watch: Callable[[int], None] = lambda items: None,
    part_items: int = PART_ITEMS,
    chunk_items: int = CHUNK_ITEMS,
) -> Summary:
    """Record items and keep the samples that pass the filters; see `output.py` for the files.

    A run resumes where an earlier one ended. The corpus is identical to that of an uninterrupted run and
    independent of the pool. Ctrl-C (`KeyboardInterrupt`) writes a smaller part with what is done, reports it to
    `progress`, and is raised.

    Args:
        folder: Folder of the corpus.
        items: Items of the source, in the same order in every run. Pools of several processes pickle them.
        settings: Settings that decide which samples to keep.
        description: Description of the items, as JSON. The folder keeps it with the settings, and a later run must have
            the same.
        work: Turns items into samples. Pools of several processes pickle it.
        filters: Filters of your own, added to those of the settings.
        pool: Processes to work in.
        progress: Called after each part.
        watch: Called after each chunk with the number of items done.
        part_items: Items in a part.
        chunk_items: Items that a process takes at a time. Makes no difference to the corpus.

    Returns:
        What the corpus holds now.

    Raises:
        BlockingIOError: Another process writes to the folder.
        ValueError: The folder holds another corpus, or its files are damaged.
        SandboxError: The sandbox does not work on this machine.
    """
    settings = replace(settings, filters=(*settings.filters, *filters))
    vocab_size = Tokenizer.load(settings.tokenizer).vocab_size
    described = {"items": dict(description), "settings": _as_json(settings), "part_items": part_items}
    with CorpusWriter(folder, described, vocab_size, settings.near_duplicates) as corpus:
        part: list[ChunkResult] = []
        left = islice(iter(items), corpus.items + corpus.started, None)
        chunks = _in_chunks(left, chunk_items, part_items, corpus.started)
        sent = secrets.read(getattr(work, "secrets", ()))
        results = in_order(pool, partial(_do_work, settings, work), chunks, sent)

        def finish(*, interrupted: bool = False) -> None:
            done = corpus.items + corpus.started + _count(part)
            with _interrupts_held():
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
            _close_recorder()
        return _summary(corpus)


def _summary(corpus: CorpusWriter) -> Summary:
    return Summary(corpus.items, corpus.tokens, corpus.by_clock, corpus.drops)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold back Ctrl-C until the block is done, if this is the thread that it would interrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[tuple[int, Any]] = []
    previous = signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if received and callable(previous):
            previous(*received[0])


def _count(part: Iterable[ChunkResult]) -> int:
    return sum(items for items, _ in part)


def _in_chunks(items: Iterator[Item], size: int, part_items: int, taken: int) -> Iterator[list[Item]]:
    """Yield chunks of items that do not cross the ends of parts. The first part has `taken` items already."""
    while chunk := list(islice(items, min(size, part_items - taken))):
        taken = (taken + len(chunk)) % part_items
        yield chunk


def _do_work(settings: CorpusSettings, work: Work, items: list[Any]) -> ChunkResult:
    """Return the number of items and their samples. Runs in a recording process."""
    return len(items), work(items, _recorder(settings))


def _recorder(settings: CorpusSettings) -> SampleRecorder:
    """Return the recorder of this process, whose sandboxes serve one chunk after the other."""
    if _ThisProcess.recorder is None or _ThisProcess.recorder.settings != settings:
        _close_recorder()
        _ThisProcess.recorder = SampleRecorder(settings)
        # Processes of a pool end without `atexit`, and sandboxes of the kind "process" leave a folder.
        Finalize(None, _close_recorder, exitpriority=0)
    return _ThisProcess.recorder


def _close_recorder() -> None:
    """End the sandboxes of this process."""
    if _ThisProcess.recorder is not None:
        _ThisProcess.recorder.close()
        _ThisProcess.recorder = None


class _ThisProcess:
    """State that a recording process keeps between chunks."""

    recorder: SampleRecorder | None = None


def _as_json(settings: CorpusSettings) -> dict[str, Any]:
    """Return the settings in the form on disk, which stays the same so that old corpora resume."""
    values = asdict(replace(settings, filters=()))
    values["backend"] = values.pop("sandbox")
    values["filters"] = list(map(_name, settings.filters))
    if not values["filters"]:
        del values["filters"]
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in values.items()}


def _name(filter: Filter) -> str:
    """Return the import path of a function or class, or the text of an object that has one of its own."""
    if type(filter).__repr__ is not object.__repr__ and not hasattr(filter, "__qualname__"):
        return repr(filter)
    named = filter if hasattr(filter, "__qualname__") else type(filter)
    return f"{named.__module__}:{named.__qualname__}"
