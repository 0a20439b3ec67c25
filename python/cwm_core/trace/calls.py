"""Which of the calls that a test suite makes are kept: a sample by call site."""

from bisect import bisect_left, insort
from collections import defaultdict
from hashlib import blake2b

SUFFIX = ".cwmtraces"
"""Of the stores in a recording's folder, one of each process."""


class CallSample:
    """Which calls are kept: of each function, and of each of its call sites, those of the least priorities.

    Priorities are pseudo-random, and of the call alone. So the sample does not depend on the order of calls, and that
    of several processes is the sample of what they kept.
    """

    def __init__(self, per_site: int, per_function: int) -> None:
        """Keep nothing yet."""
        self._per_site, self._per_function = per_site, per_function
        self._sites: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._functions: dict[str, list[int]] = defaultdict(list)

    def add(self, function: str, site: str, priority: int) -> bool:
        """Whether a call belongs to the sample as far as it is known; it may come to be displaced."""
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
    """The priority of a call, in 64 bits: `number` counts those in this test of the function from this call site."""
    text = repr((seed, test, function, site, number)).encode("utf-8", "backslashreplace")
    return int.from_bytes(blake2b(text, digest_size=8).digest())
