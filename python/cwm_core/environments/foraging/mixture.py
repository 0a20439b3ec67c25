"""How many tasks of each kind, and in which order they are tried."""

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
"""Percent of the Code World Model's tasks for its ForagerAgent (arXiv 2510.02387)."""


def quotas(count: int, shares: Mapping[str, float]) -> dict[str, int]:
    """`count` tasks divided by `shares`, by largest remainders, equal ones in the order of `shares`.

    Raises ValueError for shares that are negative or have no sum above 0.
    """
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"no mix can be made of the shares {dict(shares)}")
    exact = {kind: count * share / total for kind, share in shares.items()}
    whole = {kind: int(number) for kind, number in exact.items()}
    by_remainder = sorted(exact, key=lambda kind: whole[kind] - exact[kind])
    for kind in by_remainder[: count - sum(whole.values())]:
        whole[kind] += 1
    return whole


def mixed(streams: Mapping[str, Sequence[Item]], shares: Mapping[str, float]) -> Iterator[tuple[str, Item]]:
    """The items of all kinds in one order, in which each kind comes as often as its share says while it lasts."""

    def timed(kind: str, rank: int) -> Iterator[tuple[float, int, str, Item]]:
        for number, item in enumerate(streams[kind]):
            yield (number + 0.5) / shares[kind], rank, kind, item

    kinds = [kind for kind in streams if shares.get(kind, 0) > 0]
    merged = heapq.merge(*(timed(kind, rank) for rank, kind in enumerate(kinds)), key=lambda entry: entry[:2])
    for _, _, kind, item in merged:
        yield kind, item


def interleaved(lists: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """The first of every list, then the second, and so on while there are any."""
    for at in range(max(map(len, lists), default=0)):
        for items in lists:
            if at < len(items):
                yield items[at]
