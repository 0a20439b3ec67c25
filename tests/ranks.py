"""Functions of a test in several processes, the ranks of a process group on this machine's CPU."""

import os
import pickle
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from time import monotonic
from typing import Any

# Processes are forked off a server that has imported these and done nothing else: a rank starts in milliseconds.
_PRELOAD = [
    "cwm_core.training.trainer",
    "hypothesis",
    "numpy.random",
    "pytest",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Call `function(*args)` in `world_size` processes of a gloo group; returns what it returned, by rank.

    `function` is of a module's top level, and what it takes and returns can be pickled. As under torchrun, RANK,
    WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE are set; the default process group exists. Raises AssertionError with
    the traceback of the rank that failed first, or when there is no result after `timeout` seconds; no process is left.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    results: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        processes, ranks = [], {}
        try:
            for rank in range(world_size):
                ours, theirs = context.Pipe()
                place = (rank, world_size, Path(folder) / "store", timeout)
                processes.append(context.Process(target=_rank, args=(theirs, place, function, args)))
                processes[-1].start()
                theirs.close()
                ranks[ours] = rank
            end = monotonic() + timeout
            while ranks:
                ready = connection.wait(list(ranks), max(0, end - monotonic()))
                assert ready, f"no result after {timeout} s from ranks {sorted(ranks.values())} of {world_size}"
                for pipe in ready:
                    rank = ranks.pop(pipe)
                    results[rank] = _result(pipe, rank, processes[rank])
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [results[rank] for rank in range(world_size)]


def _result(pipe: Any, rank: int, process: Any) -> Any:
    try:
        failed, value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        raise AssertionError(f"rank {rank} ended without a result, exit code {process.exitcode}") from None
    finally:
        pipe.close()
    assert not failed, f"rank {rank} failed:\n{value}"
    return value


def _rank(pipe: Any, place: tuple[int, int, Path, float], function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    rank, world_size, store, timeout = place
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)}
    if sys.platform == "linux":  # a container's own host name need not lead anywhere
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=store.as_uri(), rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
        )
        message = pickle.dumps((False, function(*args)))
    except BaseException:
        message = pickle.dumps((True, traceback.format_exc()))
    pipe.send_bytes(message)
    pipe.poll(None)  # until the test kills all, or is gone: another rank may need this one's connections
