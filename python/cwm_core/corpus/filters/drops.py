"""Counts of what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..sample import Drop
from .extra import missing_extra

if TYPE_CHECKING:
    from rich.table import Table


class DropCounts:
    """Counts samples that were kept and those that were dropped by reason, with a few details of each reason.

    Counts of several workers are brought together by `merge`, in any order.
    """

    EXAMPLES = 3
    """Of each reason, this many details are kept: the least in order of text, so that workers' order makes no
    difference."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    @property
    def total(self) -> int:
        """The number of samples counted."""
        return self.kept + self.reasons.total()

    def add(self, drop: Drop | None) -> None:
        """Count a sample, by what the filters said of it."""
        if drop is None:
            self.kept += 1
            return
        self.reasons[drop.reason] += 1
        self._add_examples(drop.reason, [drop.detail] if drop.detail else [])

    def merge(self, other: DropCounts) -> None:
        """Add what another has counted."""
        self.kept += other.kept
        self.reasons += other.reasons
        for reason, examples in other.examples.items():
            self._add_examples(reason, examples)

    def to_json(self) -> dict[str, Any]:
        """The counts as a JSON object; `from_json` reads it."""
        return {
            "kept": self.kept,
            "dropped": dict(sorted(self.reasons.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DropCounts:
        """Read what `to_json` gave. Raises ValueError for anything else."""
        drops = cls()
        try:
            drops.kept = _count(value["kept"])
            drops.reasons = Counter({str(reason): _count(count) for reason, count in value["dropped"].items()})
            for reason, examples in value["examples"].items():
                drops._add_examples(str(reason), list(map(str, examples)))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no counts of drops: {error!r}") from None
        return drops

    def table(self) -> Table:
        """The counts as a table of rich, the most frequent reason first.

        Raises ImportError where rich is not installed.
        """
        try:
            from rich.table import Table
            from rich.text import Text
        except ImportError as error:
            raise missing_extra("a table of drops", error) from None
        table = Table("reason", "samples", "share", "example")
        for column in table.columns[1:3]:
            column.justify = "right"
        rows = [("kept", self.kept), *sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))]
        for reason, count in rows:
            share = f"{count / self.total:.1%}" if self.total else ""
            example = next(iter(self.examples.get(reason, [])), "")
            table.add_row(Text(reason), f"{count:,}", share, Text(example, overflow="ellipsis", no_wrap=True))
        return table

    def __eq__(self, other: object) -> bool:
        """Whether the other has counted the same."""
        return isinstance(other, DropCounts) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _add_examples(self, reason: str, details: list[str]) -> None:
        if details:
            self.examples[reason] = sorted({*self.examples.get(reason, []), *details})[: self.EXAMPLES]


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a count of samples is no negative number and no {value!r}")
    return value
