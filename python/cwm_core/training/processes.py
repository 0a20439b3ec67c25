"""Run training on several processes of this machine's CPU: ranks with one thread each.

On a CPU, two processes with one thread each train a small model faster than one process with two threads, which wait
for each other after every product. `torchrun` does the same for GPUs and for several machines.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support.pool import portable
from .signals import on_first_signal

if TYPE_CHECKING:
    from .config import TrainConfig
    from .report import OnStep
    from .run import RunConfig
    from .trainer import TrainingEnd

logger = logging.getLogger(__name__)

_MAIN = "from cwm_core.training.processes import main; main()"

# What a rank reports: a call of one of the functions of a run, or its end.
_END, _FAILURE = "end", "failure"

_STOP = "stop"

# For a rank to end after its connection is closed, before it is killed.
_END_SECONDS = 5.0


class _Rank:
    """A process that trains."""

    def __init__(self, rank: int, processes: int, store: Path, config: RunConfig) -> None:
        self.connection, theirs = Pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _MAIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal must reach only the process that started this one
            )
        finally:
            theirs.close()
        # The path comes first, because the configuration may need it to be unpickled.
        self.connection.send([*sys.path, os.getcwd()])
        self.connection.send((rank, processes, store, config))

    def stop(self) -> None:
        """Ask the rank to end after its current step, with a checkpoint."""
        with suppress(OSError):
            self.connection.send(_STOP)

    def close(self) -> None:
        """End the process; it ends by itself once the connection is closed."""
        self.connection.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cause(self) -> str:
        """Return how a process that closed its connection ended."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_SECONDS)
            return f"signal {-code}" if code < 0 else f"exit code {code}"
        return "a broken connection"


def available_processes(config: RunConfig) -> int:
    """Return the number of processes for a run: up to one per core, which share the rows equally; 1 on a GPU."""
    if not config.training.device.startswith("cpu"):
        return 1
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    rows = [bucket.batch_size for bucket in config.data.buckets or ()] or [config.data.batch_size]
    return max(n for n in range(1, cores + 1) if all(count % n == 0 for count in rows))


def run_processes(
    config: RunConfig,
    processes: int,
    on_step: OnStep | None = None,
    on_warning: Callable[[str], None] = warnings.warn,
    on_note: Callable[[str], None] = logger.info,
) -> TrainingEnd:
    """Run training like `run`, on `processes` ranks with one thread each; the functions are called in this process.

    With checkpoints, SIGTERM and Ctrl-C end the run after the current step. Without them, Ctrl-C ends it at once. The
    processes end when this one does, for whatever reason.

    Raises:
        ValueError: The configuration cannot be run.
        ChildProcessError: A process was killed.
        KeyboardInterrupt: The first step had not begun when Ctrl-C arrived, or there are no checkpoints.
        Exception: The error of the first rank that failed, as `run` raises it.
    """
    if not config.training.device.startswith("cpu"):
        raise ValueError(f"[training] device {config.training.device!r} needs torchrun: several processes share a CPU")
    config = replace(config, training=_with_replicas(config.training, processes))
    calls = {"on_step": on_step, "on_warning": on_warning, "on_note": on_note}
    ranks: list[_Rank] = []
    is_stopping = threading.Event()

    def stop(_: int) -> None:
        is_stopping.set()
        for rank in ranks:
            rank.stop()

    on_note(f"{processes} processes with one thread each")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(_close, ranks)
        if config.training.checkpoint_folder:
            stack.enter_context(on_first_signal(stop))
        for rank in range(processes):
            ranks.append(_Rank(rank, processes, Path(folder) / "store", config))
        return _listen(ranks, calls, is_stopping)


def _with_replicas(config: TrainConfig, processes: int) -> TrainConfig:
    """Return settings with as many copies of the weights as possible: processes share memory, so shards save little."""
    shared = config.tensor_parallel * config.context_parallel
    is_left_open = config.data_parallel_replicas == 1 and processes % shared == 0
    return replace(config, data_parallel_replicas=processes // shared) if is_left_open else config


def _listen(ranks: list[_Rank], calls: dict[str, Any], is_stopping: threading.Event) -> TrainingEnd:
    """Make the calls that ranks ask for until all have ended; raise the error of the first that fails."""
    running = {rank.connection: number for number, rank in enumerate(ranks)}
    ends: dict[int, TrainingEnd] = {}
    while running:
        for ready in connection.wait(list(running)):
            assert isinstance(ready, Connection)
            number = running[ready]
            try:
                kind, value = ready.recv()
            except (EOFError, OSError):
                if is_stopping.is_set():  # before the rank could handle the signal
                    raise KeyboardInterrupt from None
                cause = ranks[number].cause()
                raise ChildProcessError(f"process {number} of {len(ranks)} ended with {cause}") from None
            if kind == _FAILURE:
                raise value
            if kind == _END:
                ends[number] = value
                del running[ready]
            elif calls[kind]:
                calls[kind](value)
    return ends[0]


def _close(ranks: list[_Rank]) -> None:
    for rank in ranks:
        rank.connection.close()
    for rank in ranks:
        rank.close()


def main() -> None:
    """Train, as the main function of the process of a rank."""
    link = Connection(int(sys.argv[1]))
    sys.path[:] = link.recv()
    rank, processes, store, config = link.recv()
    threading.Thread(target=_obey, args=(link,), daemon=True).start()
    message: tuple[str, Any]
    try:
        message = (_END, _train(rank, processes, store, config, link))
    except Exception as error:
        message = (_FAILURE, portable(error))
    with suppress(OSError):  # another rank has ended the run
        link.send(message)
    threading.Event().wait()  # other ranks may still need the connections of this one


def _obey(link: Connection) -> None:
    """Stop when the process that started this one says so, and end at once when it ends."""
    with suppress(EOFError, OSError):
        while link.recv() == _STOP:
            os.kill(os.getpid(), signal.SIGTERM)
    os._exit(1)


def _train(rank: int, processes: int, store: Path, config: RunConfig, link: Connection) -> TrainingEnd:
    import torch
    import torch.distributed as dist

    from .run import run

    def send(kind: str) -> Callable[[Any], None]:
        return lambda value: link.send((kind, value))

    torch.set_num_threads(1)
    if sys.platform == "linux":  # the name of a container may lead nowhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=processes)
    return run(config, send("on_step"), send("on_warning"), send("on_note"))
