"""Connect to the Docker engine, exchange bytes with programs in containers, and label containers with their owner."""

import contextlib
import os
import platform
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from . import process

TIMEOUT = 120.0  # seconds to wait for an answer of the engine
READ_BYTES = 1 << 16
POLL_SECONDS = 0.02
FRAME = struct.Struct(">B3xI")  # header in the engine's multiplexed streams: stream, length in bytes


def connect() -> Any:
    """Return a client of the engine at DOCKER_HOST, or of the engine of this host.

    Raises:
        SandboxError: The Python package docker (extra `docker`) is not installed, or the engine does not answer.
    """
    docker = docker_package()
    with engine_errors():
        return docker.from_env(timeout=TIMEOUT).api


def docker_package() -> Any:
    """Return the module `docker`. Raise SandboxError if it is not installed."""
    try:
        import docker
    except ImportError:
        said = "Docker machines need the Python package docker: run pip install '.[docker]' in a checkout of cwm-core"
        raise process.SandboxError(said) from None
    return docker


@contextlib.contextmanager
def engine_errors(image: str | None = None) -> Iterator[None]:
    """Raise ValueError for a missing image, and SandboxError for other exceptions of the client."""
    errors = docker_package().errors
    try:
        yield
    except errors.ImageNotFound:
        raise ValueError(f"image {image} is not on the Docker engine; pull or build it first") from None
    except (errors.DockerException, OSError) as error:  # exceptions of the client's HTTP library are OSErrors
        raise process.SandboxError(f"the Docker engine failed: {error}") from error


def remove(client: Any, container: str) -> None:
    """Remove a container and its volumes. The engine may be removing it already."""
    errors = docker_package().errors
    try:
        client.remove_container(container, v=True, force=True)
    except errors.NotFound:
        pass
    except errors.APIError as error:
        if error.status_code != HTTPStatus.CONFLICT:
            raise
        with contextlib.suppress(errors.NotFound):
            client.wait(container, condition="removed")


class Stream:
    """Standard streams of a program in a container, over a connection to the engine."""

    def __init__(self, connection: Any) -> None:
        """Take over a connection that `attach_socket` or `exec_start` returned."""
        self._connection = connection  # keeps the reply alive, and with it the socket
        self._socket: socket.socket = getattr(connection, "_sock", connection)
        self._socket.setblocking(False)
        self._received = bytearray()
        self.ended = False

    def exchange(
        self,
        data: bytes,
        on_stdout: Callable[[bytes], Any],
        on_stderr: Callable[[bytes], Any],
        *,
        seconds: float,
        until: Callable[[], bool] = lambda: False,
        close_stdin: bool = False,
    ) -> None:
        """See `ShellProgram.exchange`."""
        pending = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            for _, ready in process.events(selector, seconds, lambda: self.ended or until()):
                if ready & selectors.EVENT_WRITE:
                    pending = self._send(pending)
                    if not pending:
                        selector.modify(self._socket, selectors.EVENT_READ)
                        if close_stdin:
                            self._end_input()
                if ready & selectors.EVENT_READ:
                    self._receive(on_stdout, on_stderr)

    def _send(self, pending: memoryview) -> memoryview:
        """Send what fits, and return the rest. If the program has ended, the rest is discarded."""
        try:
            return pending[self._socket.send(pending) :] if pending else pending
        except BlockingIOError:
            return pending
        except OSError:
            return pending[:0]

    def _end_input(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def _receive(self, on_stdout: Callable[[bytes], Any], on_stderr: Callable[[bytes], Any]) -> None:
        """Pass on received frames: a byte (1 for stdout, 2 for stderr), three zeros, the length, and the bytes."""
        try:
            chunk = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self.ended = not chunk
        self._received += chunk
        at = 0
        while len(self._received) >= at + FRAME.size:
            stream, length = FRAME.unpack_from(self._received, at)
            end = at + FRAME.size + length
            if len(self._received) < end:
                break
            (on_stderr if stream == 2 else on_stdout)(bytes(self._received[at + FRAME.size : end]))
            at = end
        del self._received[:at]

    def close(self) -> None:
        """Close the connection. Closing again has no effect."""
        self.ended = True
        self._socket.close()
        with contextlib.suppress(OSError):
            self._connection.close()


class Exec(Stream):
    """A program started in a running container."""

    def __init__(self, client: Any, key: str) -> None:
        """Start the program."""
        super().__init__(client.exec_start(key, socket=True))
        self._client, self._key = client, key
        self._send(memoryview(b"\n"))

    def exit_code(self, seconds: float) -> int | None:
        """Wait for the exit code; return None if the program is still running or the container is gone."""
        deadline = time.monotonic() + seconds
        while True:
            with engine_errors():
                try:
                    state = self._client.exec_inspect(self._key)
                except docker_package().errors.NotFound:
                    return None
            if not state["Running"]:
                return int(state["ExitCode"])
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)


def owner_label() -> str:
    """Return a label that identifies this process and its host."""
    return f"{_place()} {os.getpid()} {_start_of(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Return whether a label is of a process of this host that has ended; False for other hosts."""
    place, pid, start = owner.rsplit(" ", 2)
    return place == _place() and start != str(_start_of(int(pid)))


def _place() -> str:
    """Return the names of this host and of the namespace of process ids."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _start_of(pid: int) -> str | None:
    """Return the start time of a process in ticks since boot; None without such a process, or without /proc."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None
