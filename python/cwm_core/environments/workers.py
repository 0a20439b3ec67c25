"""Environments in processes of their own, on this machine or on a Ray cluster.

Whatever an episode does, its process can be interrupted and unwinds: shells, containers and work trees are gone after
it. It also ends when the process that started it does, however that ended.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any, Protocol

from ..machines import Backend
from ..support import secrets
from .environment import Environment, Transition
from .tasks import Task

GRACE = 30.0  # seconds that a process has to clean up before it is killed
EXTRA_SECONDS = 900.0  # beyond an episode's, for copying, building and judging, before a worker is given up

_MAIN = "from cwm_core.environments.workers import main; main()"


class WorkerError(RuntimeError):
    """An environment in another process failed; says what it said."""


class EnvironmentWorker(Protocol):
    """An environment elsewhere."""

    def start(self, task: Task) -> str:
        """As `Environment.start`; raises `WorkerError` for whatever went wrong."""
        ...

    def step(self, action: str) -> Transition:
        """As `Environment.step`; raises `WorkerError` for whatever went wrong."""
        ...

    def close(self) -> None:
        """End the process; from any thread, also while another one waits for an answer, which then fails."""
        ...


class ProcessWorker:
    """An `Environment` in a process of this machine."""

    def __init__(self, backend: Backend | None, options: Mapping[str, Any], seconds: float) -> None:
        """Start a process with ``Environment(backend, **options)``; an answer that takes longer than `seconds` fails.

        Raises TypeError or `pickle.PicklingError` for a backend that cannot be sent to another process.
        """
        self._seconds = seconds
        self._connection, theirs = Pipe()
        watched, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(watched)],
                stdin=subprocess.DEVNULL,
                env=secrets.public(),  # what an agent runs may read the environment of its parents
                pass_fds=(theirs.fileno(), watched),
                start_new_session=True,  # a terminal's Ctrl-C is for the process that started it, which then decides
            )
        except BaseException:
            self._connection.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(watched)
        self._closing = threading.Lock()
        try:
            # First the path: what comes next may be of modules that are found only there.
            self._connection.send([*sys.path, os.getcwd()])
            self._connection.send((backend, dict(options)))
        except BaseException:
            self.close()
            raise

    def start(self, task: Task) -> str:
        """See `EnvironmentWorker.start`."""
        observation: str = self._ask("start", task)
        return observation

    def step(self, action: str) -> Transition:
        """See `EnvironmentWorker.step`."""
        transition: Transition = self._ask("step", action)
        return transition

    def _ask(self, what: str, argument: Any) -> Any:
        try:
            self._connection.send((what, argument))
            if not self._connection.poll(self._seconds):
                self.close()
                raise WorkerError(f"the environment did not answer within {self._seconds:.0f} seconds")
            is_answer, answer = self._connection.recv()
        except (EOFError, OSError):
            code = self._ended()
            raise WorkerError(f"the environment's process ended with {code}") from None
        if not is_answer:
            raise WorkerError(answer)
        return answer

    def _ended(self) -> str:
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "a broken connection"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """See `EnvironmentWorker.close`."""
        with self._closing:
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
            try:
                self._process.wait(GRACE)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def main() -> None:
    """Serve one environment: what a `ProcessWorker` starts."""
    connection, watched = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit an ignored one
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        threading.Thread(target=_interrupt_at_end_of, args=(watched,), daemon=True).start()
        sys.path[:] = connection.recv()
        backend, options = connection.recv()
        with Environment(backend, **options) as environment:
            while True:
                what, argument = connection.recv()
                connection.send(_serve(environment, what, argument))


def _serve(environment: Environment, what: str, argument: Any) -> tuple[bool, Any]:
    """Whether it could be done, and what it gave or why not."""
    try:
        if what == "start":
            return True, environment.start(argument)
        return True, environment.step(argument)
    except Exception as error:  # whatever it is, it fails this episode and no other
        with contextlib.suppress(Exception):
            environment.close()
        return False, f"{type(error).__name__}: {error}"


def _interrupt_at_end_of(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


class RayWorker:
    """A `ProcessWorker` on some machine of a Ray cluster."""

    def __init__(self, backend: Backend | None, options: Mapping[str, Any], seconds: float, cpus: float) -> None:
        """Ask Ray for a place that has `cpus` processors left."""
        import ray

        self._ray: Any = ray
        actor: Any = ray.remote(num_cpus=cpus, max_restarts=0)(ProcessWorker)
        self._actor: Any = actor.remote(backend, dict(options), seconds)

    def start(self, task: Task) -> str:
        """See `EnvironmentWorker.start`."""
        observation: str = self._get(self._actor.start.remote(task))
        return observation

    def step(self, action: str) -> Transition:
        """See `EnvironmentWorker.step`."""
        transition: Transition = self._get(self._actor.step.remote(action))
        return transition

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerError(str(error.cause)) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerError(f"{type(error).__name__}: {error}") from None

    def close(self) -> None:
        """See `EnvironmentWorker.close`. The actor's end is that of the process it started."""
        self._ray.kill(self._actor)


def ray_workers(
    ray: Any, backend: Backend | None, options: Mapping[str, Any], seconds: float, count: int | None
) -> tuple[Callable[[], RayWorker], int]:
    """Return what makes workers on a Ray cluster, and how many there may be: `count`, or one for each processor.

    `ray` is what `support.cluster.ray_cluster` yields.
    """
    processors = ray.cluster_resources()["CPU"]
    count = count or int(processors)
    # Where more workers are asked for than there are processors, each takes a part of one: all get a place.
    share = min(1.0, int(processors / count * 1000) / 1000)
    return lambda: RayWorker(backend, options, seconds, share), count
