"""Connect to a Ray cluster and leave it as it was."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import secrets

CONNECT_SECONDS = 5.0


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Connect this process to a Ray cluster for the block, and yield the module `ray`.

    The cluster is the one that this process is connected to already, which stays connected; else the one of the
    variable RAY_ADDRESS (`HOST:PORT`, `ray://HOST:PORT`, `auto` for one that runs on this machine); else a new one of
    this machine alone, which ends with the block. Ray's processes get none of this process's secrets.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: The cluster of RAY_ADDRESS cannot be reached, or no node of the cluster has a processor.
    """
    ray = _package()
    started = not ray.is_initialized()
    try:
        if started:
            _start(ray)
        if ray.cluster_resources().get("CPU", 0) < 1:
            raise ConnectionError(
                "the Ray cluster has no CPUs, so work would wait for ever: add a node that has some (ray start "
                "--address=... --num-cpus=N), or unset RAY_ADDRESS to work on this machine"
            )
        yield ray
    finally:
        if started:
            with _uninterrupted():
                ray.shutdown()


def _package() -> Any:
    try:
        import ray
    except ImportError:
        said = "work on a cluster needs the package ray: run pip install '.[ray]' in a checkout of cwm-core"
        raise ModuleNotFoundError(said, name="ray") from None
    return ray


def _start(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        with secrets.hidden(), _uninterrupted():
            ray.init(address="local", log_to_driver=False, logging_level="ERROR")
        return
    try:
        _check(address)
        with secrets.hidden(), _uninterrupted():
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConnectionError(
            f"the Ray cluster of RAY_ADDRESS={address} cannot be reached: {reason}; correct the variable, or "
            "unset it to work on this machine"
        ) from None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C while Ray starts or ends: a process in which Ray is half there ends by SIGSEGV."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _check(address: str) -> None:
    """Raise ConnectionError or ValueError where nothing of Ray answers: Ray itself would try for minutes."""
    if address == "auto":
        return
    is_client = address.startswith("ray://")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not host or "/" in host:
        raise ValueError("expected HOST:PORT, ray://HOST:PORT, auto, or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(str(error)) from None
    if not is_client and not _is_healthy(address):
        raise ConnectionError("what listens there is not the head of a Ray cluster that works")


def _is_healthy(address: str) -> bool:
    """Whether the head's control service answers, as `ray health-check` asks it."""
    try:
        from ray._raylet import check_health
    except ImportError:  # another version of Ray has it elsewhere, and `ray.init` tries for longer
        return True
    return check_health(address, timeout=int(CONNECT_SECONDS))
