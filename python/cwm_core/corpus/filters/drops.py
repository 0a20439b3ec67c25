"""Count dropped samples by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..sample import Drop
from .extra import missing_extra

if TYPE_CHECKING:
    from rich.table import Table


class DropCounts:
    """Counts samples that were kept, and dropped samples by reason, with a few details of each reason.

    `merge` adds the counts of several processes, in any order.
    """

    EXAMPLES = 3
    """Details kept of each reason: the first ones in alphabetical order, so that the order of processes does not
    matter.
    """

    def __init__(self) -> None:
        """Start with nothing counted."""
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    @property
    def total(self) -> int:
        """Number of samples counted."""
        return self.kept + self.reasons.total()

    def add(self, drop: Drop | None) -> None:
        """Count a sample: `drop` is the result of the filters."""
        if drop is None:
            self.kept += 1
            return
        self.reasons[str(drop.reason)] += 1
        self._add_examples(str(drop.reason), [drop.detail] if drop.detail else [])

    def merge(self, other: DropCounts) -> None:
        """Add the counts of another object."""
        self.kept += other.kept
        self.reasons += other.reasons
        for reason, examples in other.examples.items():
            self._add_examples(reason, examples)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object that `from_json` reads."""
        return {
            "kept": self.kept,
            "dropped": dict(sorted(self.reasons.items())),
            "examples": dict(sorted(self.examples.items())),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DropCounts:
        """Read what `to_json` returned.

        Raises:
            ValueError: The value does not hold counts.
        """
        drops = cls()
        try:
            drops.kept = _count(value["kept"])
            drops.reasons = Counter({str(reason): _count(count) for reason, count in value["dropped"].items()})
            for reason, examples in value["examples"].items():
                drops._add_examples(str(reason), list(map(str, examples)))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected counts of drops: {error!r}") from None
        return drops

    def table(self) -> Table:
        """Return a table for Rich, with the most frequent reason first.

        Raises:
            ImportError: Rich is not installed.
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
        """Return whether the other object has counted the same."""
        return isinstance(other, DropCounts) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def _add_examples(self, reason: str, details: list[str]) -> None:
        if details:
            self.examples[reason] = sorted({*self.examples.get(reason, []), *details})[: self.EXAMPLES]


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a count of samples, got {value!r}")
    return value
