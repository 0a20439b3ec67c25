"""Find samples that share code with evaluation problems."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from ..._native import DamagedFileError
from ...support.jsonl import read_rows
from ..reasons import DropReason
from ..sample import Drop, Sample

_WORD = re.compile(r"\w+")


class Decontamination:
    """Drops samples whose code has a run of `n` words in common with an evaluation problem.

    Words are names, numbers, and keywords, also those in comments and strings; layout and operators do not count. A
    problem of fewer than `n` words is searched for as a whole if it has at least `shortest` words. Shorter problems
    would match too much, so they are left out and counted in `left_out`. The reason is `EVALUATION_SET`; the detail
    names the problem.
    """

    def __init__(self, n: int = 13, shortest: int = 8) -> None:
        """Create an empty index.

        Args:
            n: Words in a run. The default is that of the contamination analysis of GPT-3 (Brown et al., 2020, appendix
                C).
            shortest: Words that a problem must have.

        Raises:
            ValueError: `shortest` is not from 1 to `n`.
        """
        if not 1 <= shortest <= n:
            raise ValueError(f"shortest: expected 1 to n = {n}, got {shortest}")
        self.n = n
        self.shortest = shortest
        self.left_out = 0
        self._problems: dict[bytes, str] = {}
        self._lengths: set[int] = set()

    def __len__(self) -> int:
        """Return the number of runs of words in the index."""
        return len(self._problems)

    def add(self, id: str, text: str) -> None:
        """Add a text of the problem `id`. Several problems can have a run of words; the first one is named."""
        words = _WORD.findall(text)
        if len(words) < self.shortest:
            self.left_out += 1
            return
        length = min(len(words), self.n)
        self._lengths.add(length)
        for run in _runs(words, length):
            self._problems.setdefault(run, id)

    def add_jsonl(self, path: str | os.PathLike[str], fields: Sequence[str] = ("code",)) -> None:
        """Add the problems of a file with one JSON object per line.

        A problem is named by the name of the file and its `id`, its `task_id`, or the number of its line.

        Args:
            path: The file.
            fields: Fields to add, each as a separate text.

        Raises:
            DamagedFileError: A field is missing or not a string.
            OSError: The file cannot be read.
        """
        name = os.path.basename(os.fspath(path))
        for number, row in read_rows(path):
            id = row.get("id", row.get("task_id", number))
            for field in fields:
                if not isinstance(row.get(field), str):
                    raise DamagedFileError(f"{os.fspath(path)}, line {number}: {field!r} is missing or not a string")
                self.add(f"{name}: {id}", row[field])

    def match(self, text: str) -> str | None:
        """Return the problem that shares a run of words with a text, or None. The first shared run decides."""
        words = _WORD.findall(text)
        for length in sorted(self._lengths):
            for run in _runs(words, length):
                if (found := self._problems.get(run)) is not None:
                    return found
        return None

    def __call__(self, sample: Sample) -> Drop | None:
        """Search the code and the call of the sample for problems."""
        found = self.match(f"{sample.code}\n{sample.call}")
        return None if found is None else Drop(DropReason.EVALUATION_SET, found)


def _runs(words: list[str], length: int) -> Iterator[bytes]:
    """Yield a hash of 8 bytes of each run of words, which is the same in every process."""
    texts: Iterable[tuple[str, ...]] = zip(*(words[start:] for start in range(length)), strict=False)
    for run in texts:
        yield blake2b(" ".join(run).encode("utf-8", "surrogatepass"), digest_size=8).digest()
