"""Choose which of the calls of a function to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .coverage import CallCoverage

RAISING_SHARE = 1 / 3
"""Share of raising calls among the calls of a function, if any of them returns."""


def choose(tried: Mapping[str, CallCoverage], max_calls: int) -> list[str]:
    """Return up to `max_calls` calls; each reaches a step that no earlier one reaches.

    Returning calls come first. Raising calls follow, at most one more than their `RAISING_SHARE`. If no call returns,
    one raising call is chosen. Among calls that reach equally many new steps, the one with the shortest trace comes
    first, then the one that was tried first.
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
    """Return a greedy cover, and add its steps to `seen`."""
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
