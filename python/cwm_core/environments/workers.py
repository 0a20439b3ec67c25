"""Run environments in separate processes, on this host or on a Ray cluster.

A worker process can be interrupted at any time, and then removes its shells, containers, and work trees. It also ends
when the process that started it ends for any reason.
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

from .._native import CwmError
from ..machines import Backend
from ..support import secrets
from .environment import Environment, Transition
from .tasks import Task

GRACE = 30.0  # seconds for a process to clean up before it is killed
EXTRA_SECONDS = 900.0  # in addition to an episode's seconds, for copying and judging, before a worker is killed

_MAIN = "from cwm_core.environments.workers import main; main()"


class WorkerError(CwmError, RuntimeError):
    """An environment in another process failed; the text has the error."""


class EnvironmentWorker(Protocol):
    """An environment in another process."""

    def start(self, task: Task) -> str:
        """See `Environment.start`. Any failure raises `WorkerError`."""
        ...

    def step(self, action: str) -> Transition:
        """See `Environment.step`. Any failure raises `WorkerError`."""
        ...

    def close(self) -> None:
        """End the process. Any thread may call this; a thread that waits for an answer then gets an error."""
        ...


class ProcessWorker:
    """An `Environment` in a process of this host."""

    def __init__(self, backend: Backend | None, options: Mapping[str, Any], seconds: float) -> None:
        """Start a process with `Environment(backend, **options)`. An answer that takes more than `seconds` fails.

        Raises:
            TypeError: The backend or an option cannot be sent to another process.
            pickle.PicklingError: The backend or an option cannot be sent to another process.
        """
        self._seconds = seconds
        self._connection, theirs = Pipe()
        watched, self._lifeline = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno()), str(watched)],
                stdin=subprocess.DEVNULL,
                env=secrets.public(),  # commands of an agent may read the environment of their parents
                pass_fds=(theirs.fileno(), watched),
                start_new_session=True,  # Ctrl-C in the terminal must reach only the process that started this one
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
            # The path comes first, because the objects that follow may need it to be unpickled.
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
    """Serve an environment, as the main function of the process of a `ProcessWorker`."""
    connection, watched = Connection(int(sys.argv[1])), int(sys.argv[2])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit that it is ignored
    with contextlib.suppress(KeyboardInterrupt, EOFError, OSError):
        threading.Thread(target=_interrupt_at_end_of, args=(watched,), daemon=True).start()
        sys.path[:] = connection.recv()
        backend, options = connection.recv()
        with Environment(backend, **options) as environment:
            while True:
                what, argument = connection.recv()
                connection.send(_serve(environment, what, argument))


def _serve(environment: Environment, what: str, argument: Any) -> tuple[bool, Any]:
    """Return whether the request succeeded, and its result or the error."""
    try:
        if what == "start":
            return True, environment.start(argument)
        return True, environment.step(argument)
    except Exception as error:  # any error fails only this episode
        with contextlib.suppress(Exception):
            environment.close()
        return False, f"{type(error).__name__}: {error}"


def _interrupt_at_end_of(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


class RayWorker:
    """A `ProcessWorker` on a host of a Ray cluster."""

    def __init__(self, backend: Backend | None, options: Mapping[str, Any], seconds: float, cpus: float) -> None:
        """Start a `ProcessWorker` as an actor that reserves `cpus` processors."""
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
        """See `EnvironmentWorker.close`. The process ends with the actor."""
        self._ray.kill(self._actor)


def ray_workers(
    ray: Any, backend: Backend | None, options: Mapping[str, Any], seconds: float, count: int | None
) -> tuple[Callable[[], RayWorker], int]:
    """Return a function that starts a worker on a Ray cluster, and the number of workers.

    Args:
        ray: The module that `support.cluster.ray_cluster` yields.
        backend: Backend of the environments.
        options: Further arguments of the environments.
        seconds: Time limit of an answer, in seconds.
        count: Number of workers. Defaults to the number of processors.
    """
    processors = ray.cluster_resources()["CPU"]
    count = count or int(processors)
    # With more workers than processors, each worker reserves a fraction of a processor, so that all can start.
    share = min(1.0, int(processors / count * 1000) / 1000)
    return lambda: RayWorker(backend, options, seconds, share), count
