"""The Docker engine: reaching it, talking to programs in its containers, and whose a container is."""

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

TIMEOUT = 120.0  # seconds that the engine has for an answer
READ_BYTES = 1 << 16
POLL_SECONDS = 0.02
FRAME = struct.Struct(">B3xI")  # of the engine's multiplexed streams: which stream, how many bytes


def connect() -> Any:
    """A client of the engine that DOCKER_HOST names, else of this machine's.

    Raises `sandbox.SandboxError` when the Python package docker (extra ``docker``) or the engine is missing.
    """
    docker = docker_package()
    with engine_errors():
        return docker.from_env(timeout=TIMEOUT).api


def docker_package() -> Any:
    """The client's module. Raises `sandbox.SandboxError` where it is not installed."""
    try:
        import docker
    except ImportError:
        said = "Docker machines need the Python package docker: run pip install '.[docker]' in a checkout of cwm-core"
        raise process.SandboxError(said) from None
    return docker


@contextlib.contextmanager
def engine_errors(image: str | None = None) -> Iterator[None]:
    """Turn the client's exceptions into ours."""
    errors = docker_package().errors
    try:
        yield
    except errors.ImageNotFound:
        raise ValueError(f"image {image} is not on the Docker engine; pull or build it first") from None
    except (errors.DockerException, OSError) as error:  # those of the client's HTTP library are OSErrors
        raise process.SandboxError(f"the Docker engine does not do it: {error}") from error


def remove(client: Any, container: str) -> None:
    """Remove a container and its volumes; it may be going already."""
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
    """Both ends of the standard streams of a program in a container, over one connection to the engine."""

    def __init__(self, connection: Any) -> None:
        """Take over what `attach_socket` and `exec_start` return."""
        self._connection = connection  # its reply goes with it, and the socket with that
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
        """See `Program.exchange`."""
        deadline = time.monotonic() + seconds
        pending = memoryview(data)
        with selectors.DefaultSelector() as selector:
            selector.register(self._socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while not self.ended and not until() and (left := deadline - time.monotonic()) > 0:
                for _, events in selector.select(left):
                    if events & selectors.EVENT_WRITE:
                        pending = self._send(pending)
                        if not pending:
                            selector.modify(self._socket, selectors.EVENT_READ)
                            if close_stdin:
                                self._end_input()
                    if events & selectors.EVENT_READ:
                        self._receive(on_stdout, on_stderr)

    def _send(self, pending: memoryview) -> memoryview:
        """Send what fits; the rest. A program that has ended gets no more of it."""
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
        """Hand on the frames that have come: 1 for output or 2 for errors, three zeros, the length, the bytes."""
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
        """Close the connection; safe to call again."""
        self.ended = True
        self._socket.close()
        with contextlib.suppress(OSError):
            self._connection.close()


class Exec(Stream):
    """A program that was started in a running container."""

    def __init__(self, client: Any, key: str) -> None:
        """Start it."""
        super().__init__(client.exec_start(key, socket=True))
        self._client, self._key = client, key
        self._send(memoryview(b"\n"))

    def exit_code(self, seconds: float) -> int | None:
        """Its exit code, for which this waits; None when it runs on or went with its container."""
        deadline = time.monotonic() + seconds
        while True:
            with engine_errors():
                try:
                    state = self._client.exec_inspect(self._key)
                except docker_package().errors.NotFound:
                    return None
            if not state["Running"]:
                return state["ExitCode"]
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)


def owner_label() -> str:
    """Where this process runs and which it is, for a container's label."""
    return f"{_place()} {os.getpid()} {_start_of(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether an `owner_label` was a process of this machine that has ended; False where that cannot be known."""
    place, pid, start = owner.rsplit(" ", 2)
    return place == _place() and start != str(_start_of(int(pid)))


def _place() -> str:
    """This machine, and the process ids that are valid here."""
    with contextlib.suppress(OSError):
        return f"{platform.node()} {os.readlink('/proc/self/ns/pid')}"
    return platform.node()


def _start_of(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None when there is none, or no /proc."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None
