"""Describe the traces of stores, many at a time, into a file of chats. An interrupted run resumes."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from typing import Any, NamedTuple

from .._native import DamagedFileError
from ..support.log import ResumableLog
from ..trace import StoredTrace, TraceReader
from .describe import Describer, source_of

GIVEN_UP = ".given-up"
"""Suffix of the JSONL file that lists traces without a correct description, by `key` and `trace`."""

_CANCEL_SECONDS = 2.0  # for requests to end after an interruption

QUESTION = """\
Describe step by step what this program does when `main` runs.

```python
{code}
```"""


class Described(NamedTuple):
    """Numbers of traces."""

    described: int
    """Traces with a description."""
    given_up: int
    """Traces that no attempt described."""


def describe_stores(
    stores: Iterable[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    describer: Describer,
    *,
    parallel: int = 8,
    progress: Callable[[Described], None] = lambda counts: None,
) -> Described:
    """Append a row of JSON to `path` for each trace, in order. Traces that are done already are skipped.

    A row has these keys:

    - `key`: key of the trace; for a trace without one, the name of its store and its place there.
    - `trace`: a digest that distinguishes traces of the same key.
    - `source` and `license`: as in the metadata of the trace.
    - `messages`: a chat for `cwm tokenize`: the program with a question, and the description.

    Args:
        stores: Files of traces.
        path: File of chats.
        describer: Describes a trace.
        parallel: Number of traces to ask for at a time.
        progress: Called after each trace.

    Returns:
        How many traces are described and given up, with those of earlier runs.

    Raises:
        BlockingIOError: Another process writes to the file.
        DamagedFileError: A store or the file is damaged.
        OSError: A file cannot be read or written.
        EndpointError: The endpoint failed. The trace is not given up: the next run asks for it again. Other exceptions
            of `describer` are raised too. Rows that were written stay.
    """
    with (
        ResumableLog(path, durable=False) as chats,
        ResumableLog(os.fspath(path) + GIVEN_UP, durable=False) as failures,
    ):
        described, given_up = ({_identity(row) for row in log.rows()} for log in (chats, failures))
        done = described | given_up
        left = (entry for entry in _entries(stores) if not done & {entry.identity, (entry.key, "")})
        counts = Described(len(described), len(given_up))
        with closing(_described(left, describer, parallel)) as results:
            for entry, description in results:
                if description is None:
                    failures.append({"key": entry.key, "trace": entry.digest})
                    counts = counts._replace(given_up=counts.given_up + 1)
                else:
                    chats.append(_row(entry, description))
                    counts = counts._replace(described=counts.described + 1)
                progress(counts)
        return counts


class _Entry(NamedTuple):
    """A trace of a store with the values that identify it."""

    key: str
    digest: str
    stored: StoredTrace

    @property
    def identity(self) -> tuple[str, str]:
        return self.key, self.digest


def _described(
    entries: Iterator[_Entry], describer: Describer, parallel: int
) -> Generator[tuple[_Entry, str | None], None, None]:
    """Yield each trace with its description, in order."""
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
    """Cancel the running requests, repeatedly, because a thread between two requests starts another one."""
    deadline = time.monotonic() + _CANCEL_SECONDS
    while wait(answers, timeout=0).not_done and time.monotonic() < deadline:
        describer.cancel()
        wait(answers, timeout=0.02)


def _entries(stores: Iterable[str | os.PathLike[str]]) -> Iterator[_Entry]:
    for store in stores:
        for index, stored in enumerate(TraceReader(store).entries()):
            key = stored.key if stored.key is not None else f"{os.path.basename(store)}#{index}"
            text = stored.trace.to_text().encode(errors="surrogatepass")
            yield _Entry(key, hashlib.sha256(text).hexdigest()[:16], stored)


def _identity(row: Any) -> tuple[str, str]:
    """Return key and digest of the trace of a row. Rows of older files have no digest; rows of given-up traces are
    keys.
    """
    row = row if isinstance(row, dict) else {"key": row}
    key, digest = row.get("key"), row.get("trace", "")
    if not isinstance(key, str) or not isinstance(digest, str):
        raise DamagedFileError(f"expected a row of descriptions with a key, got {str(row)[:100]}")
    return key, digest


def _row(entry: _Entry, description: str) -> dict[str, Any]:
    metadata = entry.stored.metadata
    kept: dict[str, Any] = {name: metadata[name] for name in ("source", "license") if name in metadata}
    question = QUESTION.format(code=source_of(entry.stored.trace).strip("\n"))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": description}]
    return {"key": entry.key, "trace": entry.digest, **kept, "messages": messages}
