"""Which of many calls of a function to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .coverage import CallCoverage

RAISING_SHARE = 1 / 3
"""Of the calls of a function that raise, as long as any return."""


def choose(tried: Mapping[str, CallCoverage], max_calls: int) -> list[str]:
    """Up to `max_calls` calls, each of which reaches a step that those before it do not.

    First the returning ones, then those that raise, which are at most one more than `RAISING_SHARE` of the calls;
    where none returns, one that raises. Of those that reach equally many new steps, the one with the shortest trace
    comes first, then the one that was tried first.
    """
    returning = {call: r for call, r in tried.items() if not r.raised}
    raising = {call: r for call, r in tried.items() if r.raised}
    seen: set[tuple[int, int]] = set()
    chosen = _cover(returning, max_calls, seen)
    if not chosen:
        return _cover(raising, min(max_calls, 1), seen)
    room = max(1, int(len(chosen) * RAISING_SHARE / (1 - RAISING_SHARE)))
    chosen = (
        chosen[: max_calls - min(room, len(_cover(raising, room, set(seen))))]
        if len(chosen) == max_calls > 1
        else chosen
    )
    seen = {step for call in chosen for step in tried[call].steps}
    return chosen + _cover(raising, min(room, max_calls - len(chosen)), seen)


def _cover(tried: Mapping[str, CallCoverage], max_calls: int, seen: set[tuple[int, int]]) -> list[str]:
    """The greedy cover; adds to what has been seen."""
    chosen: list[str] = []
    left: Sequence[str] = sorted(tried, key=lambda call: tried[call].frames)
    while len(chosen) < max_calls:
        new = {call: len(tried[call].steps - seen) for call in left}
        left = [call for call in left if new[call]]
        if not left:
            break
        best = max(left, key=new.__getitem__)
        chosen.append(best)
        seen |= tried[best].steps
    return chosen
