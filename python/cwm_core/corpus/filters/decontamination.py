"""Samples that share code with the problems that models are evaluated on."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from ...support.jsonl import read_rows
from ..sample import Drop, Sample

_WORD = re.compile(r"\w+")


class Decontamination:
    """Drop samples whose code has a run of `n` words in common with a problem; reason ``"in an evaluation set"``.

    Words are names, numbers and keywords, in order; comments and strings count, layout and operators do not. A text of
    fewer than `n` words is looked for as a whole if it has `shortest` at least; what is shorter still matches too much
    and is left out, and `left_out` counts it. The detail names the problem.
    """

    def __init__(self, n: int = 13, shortest: int = 8) -> None:
        """An empty index. 13 words are those of the contamination analysis of GPT-3 (Brown et al., 2020, appendix C).

        Raises ValueError unless 1 <= shortest <= n.
        """
        if not 1 <= shortest <= n:
            raise ValueError(f"shortest is to be from 1 to n = {n}, not {shortest}")
        self.n = n
        self.shortest = shortest
        self.left_out = 0
        self._problems: dict[bytes, str] = {}
        self._lengths: set[int] = set()

    def __len__(self) -> int:
        """The number of runs of words in the index."""
        return len(self._problems)

    def add(self, id: str, text: str) -> None:
        """Add a text of the problem `id`. The first problem that has a run of words is the one that is named."""
        words = _WORD.findall(text)
        if len(words) < self.shortest:
            self.left_out += 1
            return
        length = min(len(words), self.n)
        self._lengths.add(length)
        for run in _runs(words, length):
            self._problems.setdefault(run, id)

    def add_jsonl(self, path: str | os.PathLike[str], fields: Sequence[str] = ("code",)) -> None:
        """Add the problems of a file, one JSON object a line, by the texts of these fields, each by itself.

        A problem is named by the file's name and its `id`, or `task_id`, or the number of its line.

        Raises ValueError that names the file and line where a field is missing or no text; OSError when it cannot be
        read.
        """
        name = os.path.basename(os.fspath(path))
        for number, row in read_rows(path):
            id = row.get("id", row.get("task_id", number))
            for field in fields:
                if not isinstance(row.get(field), str):
                    raise ValueError(f"{os.fspath(path)}, line {number}: {field!r} is missing or no text")
                self.add(f"{name}: {id}", row[field])

    def match(self, text: str) -> str | None:
        """The problem that a text shares a run of words with, the first in the text; None where there is none."""
        words = _WORD.findall(text)
        for length in sorted(self._lengths):
            for run in _runs(words, length):
                if (found := self._problems.get(run)) is not None:
                    return found
        return None

    def __call__(self, sample: Sample) -> Drop | None:
        """Look for problems in the sample's code and call."""
        found = self.match(f"{sample.code}\n{sample.call}")
        return None if found is None else Drop("in an evaluation set", found)


def _runs(words: list[str], length: int) -> Iterator[bytes]:
    """A hash of 8 bytes of each run of words, the same in every process."""
    texts: Iterable[tuple[str, ...]] = zip(*(words[start:] for start in range(length)), strict=False)
    for run in texts:
        yield blake2b(" ".join(run).encode("utf-8", "surrogatepass"), digest_size=8).digest()
