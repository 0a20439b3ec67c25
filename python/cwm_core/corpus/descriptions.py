"""Describing the traces of stores, many at a time, into a file of chats; a run that was cut goes on where it was."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Any, NamedTuple

from ..trace import StoredTrace, TraceReader
from .describe import Describer, source_of

GIVEN_UP = ".given-up"
"""Added to the name of the chats' file: the keys of traces that no attempt described, a JSON string a line."""

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
    """Append a row of JSON to `path` for each trace, in order; traces that are done already are passed over.

    A row has `key` (of a trace without one, its store and place), `source` and `licence` as the trace has them, and
    `messages`: the program with a question, and the description, a chat as `cwm tokenize` takes it. So many traces as
    `parallel` says are asked for at a time; `progress` is called after each.

    Raises ValueError for a store or a file that is damaged, OSError when one cannot be read or written, and what
    `describer` raises; rows that were written stay.
    """
    with ExitStack() as stack:
        chats, failures = (stack.enter_context(open(name, "a+b")) for name in (path, os.fspath(path) + GIVEN_UP))
        described, given_up = ({_key(row) for row in _whole_rows(file)} for file in (chats, failures))
        left = (item for item in _entries(stores) if item[0] not in described and item[0] not in given_up)
        counts = Described(len(described), len(given_up))
        for key, entry, description in _described(left, describer, parallel):
            if description is None:
                _append(failures, key)
                counts = counts._replace(given_up=counts.given_up + 1)
            else:
                _append(chats, _row(key, entry, description))
                counts = counts._replace(described=counts.described + 1)
            progress(counts)
        return counts


def _described(
    entries: Iterator[tuple[str, StoredTrace]], describer: Describer, parallel: int
) -> Iterator[tuple[str, StoredTrace, str | None]]:
    """Each trace with its description, in order."""
    pending: deque[tuple[str, StoredTrace, Future[str | None]]] = deque()
    pool = ThreadPoolExecutor(parallel)
    try:
        for key, entry in entries:
            pending.append((key, entry, pool.submit(describer, entry.trace)))
            if len(pending) >= 2 * parallel:
                yield _awaited(*pending.popleft())
        while pending:
            yield _awaited(*pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _awaited(key: str, entry: StoredTrace, answer: Future[str | None]) -> tuple[str, StoredTrace, str | None]:
    return key, entry, answer.result()


def _entries(stores: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[str, StoredTrace]]:
    for store in stores:
        for index, entry in enumerate(TraceReader(store).entries()):
            yield entry.key if entry.key is not None else f"{os.path.basename(store)}#{index}", entry


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


def _key(row: Any) -> str:
    key = row.get("key") if isinstance(row, dict) else row
    if not isinstance(key, str):
        raise ValueError(f"a row of descriptions has no key: {str(row)[:100]}")
    return key


def _append(file: IO[bytes], row: Any) -> None:
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def _row(key: str, entry: StoredTrace, description: str) -> dict[str, Any]:
    kept = {name: entry.metadata[name] for name in ("source", "licence") if name in entry.metadata}
    question = QUESTION.format(code=source_of(entry.trace).strip("\n"))
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": description}]
    return {"key": key, **kept, "messages": messages}
