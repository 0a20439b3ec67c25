"""Work on a long sequence in several processes, on this machine or a Ray cluster; results come in the items' order."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from . import secrets
from .cluster import ray_cluster as connected
from .secrets import Secrets

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3  # of an item whose process is killed
_AHEAD = 3  # items that each process has before it, so that one slow item does not let the others wait
_END_SECONDS = 10  # that a process has to end before it is killed
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pool(Protocol):
    """Where work is done."""

    size: int
    """How many processes work."""

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        """Begin; what is returned waits for the result and gives it, or raises what the work raised.

        `sent` is there for `secrets.get` while the work runs; it is written nowhere.
        """
        ...


def in_order(
    pool: Pool, work: Callable[[Item], Result], items: Iterable[Item], sent: Secrets | None = None
) -> Iterator[Result]:
    """Yield the result of each item; only a few items are taken ahead of the results. `sent` is as of `submit`."""
    pending: deque[Callable[[], Result]] = deque()
    for item in items:
        pending.append(pool.submit(work, item, sent) if sent else pool.submit(work, item))
        if len(pending) >= _AHEAD * pool.size:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


@contextmanager
def processes(size: int) -> Iterator[Pool]:
    """A pool of so many processes on this machine; of none but this one for 1.

    They end with this process, however it ends, and at once where the block raises. The item of a process that was
    killed gets a new one; after `TRIES` processes its result raises ChildProcessError.
    """
    if size == 1:
        yield _Here()
        return
    pool = _Processes(size)
    try:
        yield pool
    except BaseException:
        pool.kill()
        raise
    finally:
        pool.close()


@contextmanager
def ray_cluster() -> Iterator[Pool]:
    """A pool of the processors of a Ray cluster; which one, and what it raises, says `support.cluster.ray_cluster`."""
    with connected() as ray:
        yield _Ray(ray)


class _Here:
    size = 1

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        return lambda: work(item)


class _Processes:
    """Processes of this machine, with a thread each that hands it one item after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._killed = False
        self._changing = threading.Lock()
        """Held while a process comes or goes, so that none comes once all are killed."""
        self._running: dict[int, _Process] = {}
        self._threads = [threading.Thread(target=self._serve, args=(place,), daemon=True) for place in range(size)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        answer: Future[Result] = Future()
        self._waiting.put((answer, (work, item, sent)))
        return answer.result

    def kill(self) -> None:
        """End all processes at once; what they worked on raises CancelledError."""
        with self._changing:
            self._killed = True
            for process in self._running.values():
                process.terminate()

    def close(self) -> None:
        """Let all processes end and wait for that."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self, place: int) -> None:
        try:
            while (task := self._waiting.get()) is not None:
                answer, request = task
                try:
                    answer.set_result(self._ask(place, request))
                except BaseException as error:
                    answer.set_exception(error)
        finally:
            self._discard(place)

    def _ask(self, place: int, request: tuple[Any, ...]) -> Any:
        for _ in range(TRIES):
            process = self._process(place)
            try:
                is_result, value = process.ask(request)
            except (EOFError, ConnectionError):
                ended = self._discard(place)
                continue
            if is_result:
                return value
            raise value
        raise ChildProcessError(
            f"{TRIES} processes of the pool ended while they worked on the same items, the last one {ended}; "
            "if the system is short of memory, take fewer processes"
        )

    def _process(self, place: int) -> _Process:
        with self._changing:
            if self._killed:
                raise CancelledError("the pool was ended")
            if place not in self._running:
                self._running[place] = _Process()
            return self._running[place]

    def _discard(self, place: int) -> str:
        with self._changing:
            process = self._running.pop(place, None)
        return process.close() if process else ""


class _Process:
    """A process that does what it is asked for, one request after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would have this process's locks and not its threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()))
        with secrets.hidden():
            self._process.start()
        theirs.close()

    def ask(self, request: tuple[Any, ...]) -> tuple[bool, Any]:
        """Return what `_answer` does. Raise EOFError or ConnectionError where the process ended."""
        self._connection.send_bytes(pickle.dumps(request))
        return pickle.loads(self._connection.recv_bytes())

    def terminate(self) -> None:
        self._process.terminate()

    def close(self) -> str:
        """Let it end, and return how it did."""
        self._connection.close()
        self._process.join(_END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode or 0
        return f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


class _Ray:
    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._remote = ray.remote(max_retries=TRIES - 1)(_call)
        self._shared: dict[int, Any] = {}
        self.size = int(ray.cluster_resources()["CPU"])

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        if id(work) not in self._shared:  # what all items share goes to each machine once
            self._shared[id(work)] = (self._ray.put(work), work)
        # Secrets travel with the call, in memory. The object store, where `put` leaves things, may write to disk.
        reference = self._remote.remote(self._shared[id(work)][0], item, sent)
        return lambda: self._get(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.WorkerCrashedError as error:
            raise ChildProcessError(f"{TRIES} processes of the Ray cluster ended at the same items: {error}") from None


def _call(work: Callable[[Item], Result], item: Item, sent: Secrets | None) -> Result:
    if sent:
        secrets.receive(sent)
    return work(item)


def _serve(connection: Connection, parent: int) -> None:
    """Answer requests until the connection ends: whether the work gave a result, and that or what it raised."""
    _end_with(parent)
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        work, item, sent = pickle.loads(request)
        return pickle.dumps((True, _call(work, item, sent)))
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))
        with suppress(Exception):
            data = pickle.dumps((False, error))
            pickle.loads(data)  # some exceptions can be written, but not read
            return data
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))


def _end_with(parent: int) -> None:
    """Let this process end when `parent` does, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
