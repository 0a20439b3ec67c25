"""Describe the traces of stores, many at a time, into a file of chats; a run that was cut resumes."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from typing import IO, Any, NamedTuple

from ..trace import StoredTrace, TraceReader
from .describe import Describer, source_of

GIVEN_UP = ".given-up"
"""Added to the name of the chats' file: the traces that no attempt described, an object of `key` and `trace` a line."""

_LAST_WORDS = 2.0  # seconds that requests have to end after an interruption

QUESTION = """\
Describe step by step what this program does when `main` runs.

```python
{code}
```"""


class Described(NamedTuple):
    """What became of the traces so far."""

    described: int
    given_up: int


def describe_stores(
    stores: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    describer: Describer,
    *,
    parallel: int = 8,
    progress: Callable[[Described], None] = lambda counts: None,
) -> Described:
    """Append a row of JSON to `path` for each trace, in order; traces that are done already are skipped.

    A row has `key` (of a trace without one, its store's name and its place there), `trace` (a digest, which tells
    traces of the same key apart), `source` and `licence` as the trace has them, and `messages`: the program with a
    question, and the description, a chat as `cwm tokenize` takes it.

    Args:
        stores: Files of traces.
        path: The file of chats.
        describer: What describes a trace.
        parallel: Traces that are asked for at a time.
        progress: Called after each trace.

    Returns:
        How many traces are described and given up, those of earlier runs included.

    Raises:
        ValueError: A store or a file is damaged.
        OSError: One cannot be read or written.
        endpoint.EndpointError: The endpoint failed. The trace that was asked for is not given up: the next run asks
            again. Whatever else `describer` raises is raised, too; rows that were written stay.
    """
    with ExitStack() as stack:
        chats, failures = (stack.enter_context(open(name, "a+b")) for name in (path, os.fspath(path) + GIVEN_UP))
        described, given_up = ({_identity(row) for row in _whole_rows(file)} for file in (chats, failures))
        done = described | given_up
        left = (entry for entry in _entries(stores) if not done & {entry.identity, (entry.key, "")})
        counts = Described(len(described), len(given_up))
        for entry, description in stack.enter_context(closing(_described(left, describer, parallel))):
            if description is None:
                _append(failures, {"key": entry.key, "trace": entry.digest})
                counts = counts._replace(given_up=counts.given_up + 1)
            else:
                _append(chats, _row(entry, description))
                counts = counts._replace(described=counts.described + 1)
            progress(counts)
        return counts


class _Entry(NamedTuple):
    """A trace of a store with what tells it from others."""

    key: str
    digest: str
    stored: StoredTrace

    @property
    def identity(self) -> tuple[str, str]:
        return self.key, self.digest


def _described(entries: Iterator[_Entry], describer: Describer, parallel: int) -> Iterator[tuple[_Entry, str | None]]:
    """Each trace with its description, in order."""
    pending: deque[tuple[_Entry, Future[str | None]]] = deque()
    pool = ThreadPoolExecutor(parallel)
    try:
        for entry in entries:
            pending.append((entry, pool.submit(describer, entry.stored.trace)))
            if len(pending) >= 2 * parallel:
                yield pending[0][0], pending[0][1].result()
                pending.popleft()
        while pending:
            yield pending[0][0], pending[0][1].result()
            pending.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        _cancel(describer, [answer for _, answer in pending])


def _cancel(describer: Describer, answers: list[Future[str | None]]) -> None:
    """End what is being asked; a thread between two requests begins another, so this repeats for a while."""
    deadline = time.monotonic() + _LAST_WORDS
    while wait(answers, timeout=0).not_done and time.monotonic() < deadline:
        describer.cancel()
        wait(answers, timeout=0.02)


def _entries(stores: Iterable[str | os.PathLike[str]]) -> Iterator[_Entry]:
    for store in stores:
        for index, stored in enumerate(TraceReader(store).entries()):
            key = stored.key if stored.key is not None else f"{os.path.basename(store)}#{index}"
            text = stored.trace.to_text().encode(errors="surrogatepass")
            yield _Entry(key, hashlib.sha256(text).hexdigest()[:16], stored)


def _whole_rows(file: IO[bytes]) -> list[Any]:
    """The rows of a file, of which a torn last one is cut off."""
    file.seek(0)
    rows, whole = [], 0
    for line in file:
        if not line.endswith(b"\n"):
            break
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{file.name}, row {len(rows) + 1}: {error}") from None
        whole += len(line)
    file.truncate(whole)
    return rows


def _identity(row: Any) -> tuple[str, str]:
    """Key and digest of a row's trace; rows of older files have no digest, and those given up are keys alone."""
    row = row if isinstance(row, dict) else {"key": row}
    key, digest = row.get("key"), row.get("trace", "")
    if not isinstance(key, str) or not isinstance(digest, str):
        raise ValueError(f"a row of descriptions has no key: {str(row)[:100]}")
    return key, digest


def _append(file: IO[bytes], row: Any) -> None:
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def _row(entry: _Entry, description: str) -> dict[str, Any]:
    metadata = entry.stored.metadata
    kept = {name: metadata[name] for name in ("source", "licence") if name in metadata}
    question = QUESTION.format(code=source_of(entry.stored.trace).strip("\n"))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": description}]
    return {"key": entry.key, "trace": entry.digest, **kept, "messages": messages}
