"""Work on a long sequence in several processes, on this machine or a Ray cluster, and keep the order of results."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
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

TRIES = 3  # for an item whose process is killed
_AHEAD = 3  # items queued for each process, so that one slow item does not hold up the others
_END_SECONDS = 10  # for a process to end before it is killed
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Pool(Protocol):
    """A place to work in."""

    size: int
    """Number of processes."""

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        """Start work on an item.

        Args:
            work: Function of an item.
            item: The item.
            sent: Secrets for `secrets.get` while the work runs. They are not written anywhere.

        Returns:
            A function that waits for the result and returns it, or raises what the work raised.
        """
        ...


def in_order(
    pool: Pool, work: Callable[[Item], Result], items: Iterable[Item], sent: Secrets | None = None
) -> Iterator[Result]:
    """Yield the result of each item. Only a few items are taken ahead of the results.

    Args:
        pool: Where to work.
        work: Function of an item.
        items: The items.
        sent: Secrets, as in `Pool.submit`.
    """
    pending: deque[Callable[[], Result]] = deque()
    for item in items:
        pending.append(pool.submit(work, item, sent) if sent else pool.submit(work, item))
        if len(pending) >= _AHEAD * pool.size:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


@contextmanager
def processes(size: int) -> Iterator[Pool]:
    """Yield a pool of `size` processes on this machine; with size 1, this process does the work.

    The processes end when this one ends or is killed, and immediately if the block raises. If a process is killed, a
    new one takes its item. After `TRIES` processes the result raises ChildProcessError.
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
    """Yield a pool of the processors of a Ray cluster. `support.cluster.ray_cluster` chooses the cluster."""
    with connected() as ray:
        yield _Ray(ray)


class _Here:
    size = 1

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        return lambda: work(item)


class _Processes:
    """Processes of this machine, each with a thread that hands it one item after the other."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._waiting: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._killed = False
        self._changing = threading.Lock()
        """Held while a process starts or ends, so that none starts once all are killed."""
        self._running: dict[int, _Process] = {}
        self._threads = [threading.Thread(target=self._serve, args=(place,), daemon=True) for place in range(size)]
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[Item], Result], item: Item, sent: Secrets | None = None) -> Callable[[], Result]:
        answer: Future[Result] = Future()
        self._waiting.put((answer, (work, item, sent)))
        return answer.result

    def kill(self) -> None:
        """Kill all processes. Work in progress raises CancelledError."""
        with self._changing:
            self._killed = True
            for process in self._running.values():
                process.terminate()

    def close(self) -> None:
        """Let all processes end, and wait for them."""
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
            "if memory is short, use fewer processes"
        )

    def _process(self, place: int) -> _Process:
        with self._changing:
            if self._killed:
                raise CancelledError("the pool has ended")
            if place not in self._running:
                self._running[place] = _Process()
            return self._running[place]

    def _discard(self, place: int) -> str:
        with self._changing:
            process = self._running.pop(place, None)
        return process.close() if process else ""


class _Process:
    """A process that answers one request after the other."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks without the threads that hold them
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, os.getpid()))
        with secrets.hidden():
            self._process.start()
        theirs.close()

    def ask(self, request: tuple[Any, ...]) -> tuple[bool, Any]:
        """Return what `_answer` returns.

        Raises:
            EOFError: The process ended.
            ConnectionError: The process ended.
        """
        self._connection.send_bytes(pickle.dumps(request))
        answer: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        return answer

    def terminate(self) -> None:
        self._process.terminate()

    def close(self) -> str:
        """Let the process end, and return how it ended."""
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
        if id(work) not in self._shared:  # sent to each machine only once
            self._shared[id(work)] = (self._ray.put(work), work)
        # Secrets travel with the call, in memory. The object store of `put` may write to disk.
        reference = self._remote.remote(self._shared[id(work)][0], item, sent)
        return lambda: self._get(reference)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.WorkerCrashedError as error:
            text = f"{TRIES} processes of the Ray cluster ended while they worked on the same items: {error}"
            raise ChildProcessError(text) from None


def _call(work: Callable[[Item], Result], item: Item, sent: Secrets | None) -> Result:
    if sent:
        secrets.receive(sent)
    return work(item)


def _serve(connection: Connection, parent: int) -> None:
    """Answer requests until the connection ends: whether the work gave a result, and the result or the exception."""
    end_with(parent)
    with suppress(EOFError, ConnectionError):
        while True:
            connection.send_bytes(_answer(connection.recv_bytes()))


def _answer(request: bytes) -> bytes:
    try:
        work, item, sent = pickle.loads(request)
        return pickle.dumps((True, _call(work, item, sent)))
    except Exception as error:
        return pickle.dumps((False, portable(error)))


def portable(error: Exception) -> Exception:
    """Return an error for another process, with its traceback as a note: a RuntimeError if it cannot be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))  # some exceptions can be pickled but not unpickled
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def end_with(parent: int) -> None:
    """End this process when `parent` does, in an orderly way, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that finalizers run
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # the parent has ended already
        os._exit(1)
