"""Work on a long sequence in several processes, on this machine or a Ray cluster; results come in the items' order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3  # items that each process has before it, so that one slow item does not let the others wait
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pool(Protocol):
    """Where work is done."""

    size: int
    """How many processes work."""

    def submit(self, work: Callable[[Item], Result], item: Item) -> Callable[[], Result]:
        """Begin; what is returned waits for the result and gives it, or raises what the work raised."""
        ...


def in_order(pool: Pool, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The result of each item; only a few items are taken ahead of the results."""
    pending: deque[Callable[[], Result]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= _AHEAD * pool.size:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


@contextmanager
def processes(size: int) -> Iterator[Pool]:
    """A pool of so many processes on this machine; of none but this one for 1.

    They end with this process, however it ends.
    """
    if size == 1:
        yield _Here()
        return
    context = multiprocessing.get_context("spawn")  # a fork would have this process's locks and not its threads
    with ProcessPoolExecutor(size, context, _end_with, (os.getpid(),)) as executor:
        try:
            yield _Processes(executor, size)
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def ray_cluster() -> Iterator[Pool]:
    """The Ray cluster that this process is connected to, or of RAY_ADDRESS, or a new one of this machine alone.

    Raises ImportError where Ray is not installed.
    """
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, logging_level="ERROR")
    try:
        yield _Ray(ray)
    finally:
        if started:
            ray.shutdown()


class _Here:
    size = 1

    def submit(self, work: Callable[[Item], Result], item: Item) -> Callable[[], Result]:
        return lambda: work(item)


class _Processes:
    def __init__(self, executor: ProcessPoolExecutor, size: int) -> None:
        self._executor, self.size = executor, size

    def submit(self, work: Callable[[Item], Result], item: Item) -> Callable[[], Result]:
        return self._executor.submit(work, item).result


class _Ray:
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(max_retries=2)(_call)
        self._shared: dict[int, Any] = {}
        self.size = max(int(ray.cluster_resources().get("CPU", 1)), 1)

    def submit(self, work: Callable[[Item], Result], item: Item) -> Callable[[], Result]:
        if id(work) not in self._shared:  # what all items share goes to each machine once
            self._shared[id(work)] = (self._ray.put(work), work)
        reference = self._remote.remote(self._shared[id(work)][0], item)
        return lambda: self._ray.get(reference)


def _call(work: Callable[[Item], Result], item: Item) -> Result:
    return work(item)


def _end_with(parent: int) -> None:
    """Let this process end when `parent` does, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
