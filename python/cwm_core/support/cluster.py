"""Connect to a Ray cluster and leave it as it was."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import secrets

CONNECT_SECONDS = 5.0
_SETTINGS = 4  # type of a frame in HTTP/2


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Connect this process to a Ray cluster for the block, and yield the module `ray`.

    The cluster is, in this order:

    1. The one that this process is connected to, which stays connected.
    2. The one that RAY_ADDRESS names: `HOST:PORT`, `ray://HOST:PORT`, or `auto` for one that runs on this machine.
    3. A new one on this machine alone, which ends with the block.

    Ray's processes get no secrets of this process.

    Raises:
        ModuleNotFoundError: Ray is not installed.
        ConnectionError: The cluster of RAY_ADDRESS cannot be reached, or no node of the cluster has a processor.
    """
    ray = _package()
    started = not ray.is_initialized()
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        if started:
            _start(ray)
        if ray.cluster_resources().get("CPU", 0) < 1:
            raise ConnectionError(
                "the Ray cluster has no CPUs, so work would wait forever: add a node with CPUs (ray start "
                "--address=... --num-cpus=N), or unset RAY_ADDRESS to work on this machine"
            )
        yield ray
    finally:
        if started:
            with _uninterrupted():
                ray.shutdown()
            _restore(signal.SIGTERM, terminate)


def _package() -> Any:
    # Ray reads this when it is imported. A cluster that was started where a token exists requires the token, and Ray
    # sends it only in this mode. Other clusters ignore it. Processes that Ray starts read it too, so it must not change
    # once Ray is imported.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
    except ImportError:
        said = "a Ray cluster needs the package ray: run pip install '.[ray]' in a checkout of cwm-core"
        raise ModuleNotFoundError(said, name="ray") from None
    return ray


def _has_token() -> bool:
    given = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return given or os.path.exists(os.path.expanduser("~/.ray/auth_token"))


def _provide_token() -> None:
    """Save the token of new clusters in a temporary file if Ray cannot save it in the home folder."""
    if _has_token() or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    with suppress(OSError, RuntimeError):  # the latter if there is no home folder
        folder = Path.home() / ".ray"
        folder.mkdir(exist_ok=True)
        if os.access(folder, os.W_OK):
            return
    descriptor, path = tempfile.mkstemp(prefix="cwm-ray-token-")
    with open(descriptor, "w") as file:
        file.write(uuid.uuid4().hex)
    os.environ["RAY_AUTH_TOKEN_PATH"] = path  # for the life of this process, because Ray caches the token
    process = os.getpid()
    atexit.register(lambda: os.unlink(path) if os.getpid() == process else None)


def _start(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _provide_token()
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
    """Hold back Ctrl-C while Ray starts or ends: a process in which Ray is half started ends by SIGSEGV."""
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


def _restore(number: int, handler: Any) -> None:
    """Set the handler that Ray replaced: its own would outlive the cluster, and forked processes would inherit it."""
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _check(address: str) -> None:
    """Raise ConnectionError or ValueError if no Ray cluster answers. Ray itself would try for minutes."""
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal() or not host or "/" in host:
        raise ValueError("expected HOST:PORT, ray://HOST:PORT, auto, or local")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as connection:
            answers = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise ConnectionError(str(error)) from None
    if not answers:
        raise ConnectionError("the server there is not the head of a Ray cluster")


def _speaks_http2(connection: socket.socket) -> bool:
    """Return whether a server greets in HTTP/2 (RFC 9113, section 3.4), as all servers of Ray do."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0]))
    deadline, header = time.monotonic() + CONNECT_SECONDS, b""
    while len(header) < 4 and (left := deadline - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            chunk = connection.recv(4 - len(header))
        except TimeoutError:
            break
        if not chunk:
            break
        header += chunk
    return header[3:4] == bytes([_SETTINGS])
