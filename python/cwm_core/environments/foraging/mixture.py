"""Divide tasks among kinds, and order candidates."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")

MIX = {
    "remove-function": 7.0,
    "swap-arguments": 9.0,
    "swap-variables": 6.0,
    "delete-statement": 11.0,
    "flip-operator": 12.0,
    "issue-fix": 55.0,
}
"""Percentages of kinds in the tasks of the Code World Model's ForagerAgent (arXiv 2510.02387)."""


def quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Divide `count` tasks in proportion to `shares`, by largest remainder; ties go in the order of `shares`.

    Raises:
        ValueError: A share is negative, or their sum is 0.
    """
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"shares must not be negative and must have a positive sum, got {dict(shares)}")
    exact = {kind: count * share / total for kind, share in shares.items()}
    whole = {kind: int(number) for kind, number in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: whole[kind] - exact[kind])
    for kind in by_remainder[: count - sum(whole.values())]:
        whole[kind] += 1
    return whole


def mixed(streams: Mapping[str, Sequence[Item]], shares: Mapping[str, float]) -> Iterator[tuple[str, Item]]:
    """Yield the items of all kinds interleaved in proportion to their shares, until each kind runs out."""

    def timed(kind: str, rank: int) -> Iterator[tuple[float, int, str, Item]]:
        for number, item in enumerate(streams[kind]):
            yield (number + 0.5) / shares[kind], rank, kind, item

    kinds = [kind for kind in streams if shares.get(kind, 0) > 0]
    merged = heapq.merge(*(timed(kind, rank) for rank, kind in enumerate(kinds)), key=lambda entry: entry[:2])
    for _, _, kind, item in merged:
        yield kind, item


def interleaved(lists: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """Yield the first item of every list, then the second, and so on."""
    for at in range(max(map(len, lists), default=0)):
        for items in lists:
            if at < len(items):
                yield items[at]
