"""Sample the calls of a test suite by function and call site."""

from bisect import bisect_left, insort
from collections import defaultdict
from hashlib import blake2b

SUFFIX = ".cwmtraces"
"""File suffix of the trace stores in the folder of a recording, one for each process."""


class CallSample:
    """Keeps the calls with the lowest priorities for each function and each call site.

    Priorities are pseudo-random and depend only on the call. The sample does not depend on the order of calls, and
    sampling the union of several processes' samples yields the sample of all calls.
    """

    def __init__(self, per_site: int, per_function: int) -> None:
        """Start with an empty sample of at most this many calls per call site and per function."""
        self._per_site, self._per_function = per_site, per_function
        self._sites: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._functions: dict[str, list[int]] = defaultdict(list)

    def add(self, function: str, site: str, priority: int) -> bool:
        """Return whether a call belongs to the sample so far. Later calls can displace it."""
        of_site, of_function = self._sites[function, site], self._functions[function]
        if bisect_left(of_site, priority) >= self._per_site or bisect_left(of_function, priority) >= self._per_function:
            return False
        insort(of_site, priority)
        insort(of_function, priority)
        if len(of_site) > self._per_site:
            displaced = of_site.pop()
            place = bisect_left(of_function, displaced)
            del of_function[place : place + (of_function[place : place + 1] == [displaced])]
        del of_function[self._per_function :]
        return True


def priority(seed: int, test: str, function: str, site: str, number: int) -> int:
    """Return the 64-bit priority of a call. `number` counts the calls of this function from this site in this test."""
    text = repr((seed, test, function, site, number)).encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(text, digest_size=8).digest())
