"""A server on this machine that writes what a test tells it to, byte by byte, whether HTTP allows it or not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket, threading.Event], None]


class Served:
    """URL of the server, and the requests that it received."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[bytes] = []


@contextmanager
def bad_server(*scripts: Script, whole: bool = True) -> Iterator[Served]:
    """Answer each request by the next script, the last one again and again; scripts end when their event is set.

    Unless `whole`, they begin with the connection, before anything has come.
    """
    left, ended = list(scripts), threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))
    served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}/v1")

    def answer(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            if whole:
                served.requests.append(request(connection))
            (left.pop(0) if len(left) > 1 else left[0])(connection, ended)

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=answer, args=(listening.accept()[0],), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield served
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listening.getsockname(), 1).close()
        accepting.join()
        listening.close()


def request(connection: socket.socket) -> bytes:
    """Return head and body of a request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split()[0])
    while len(body) < length:
        body += more(connection)
    return head + b"\r\n\r\n" + body


def more(connection: socket.socket) -> bytes:
    """Return the next bytes. Raise OSError at the end."""
    if not (data := connection.recv(1 << 16)):
        raise ConnectionError("the client has gone")
    return data


def reply(body: object, status: int = 200, length: int | None = None, headers: str = "") -> Script:
    """Return a complete answer; with `length`, one that announces this many bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = len(data) if length is None else length

    def script(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(f"HTTP/1.1 {status} Reason\r\nContent-Length: {said}\r\n{headers}\r\n".encode() + data)

    return script


def drip(first: bytes, then: bytes = b" ") -> Script:
    """Write `first` at once, then the bytes of `then` one by one, forever."""

    def script(connection: socket.socket, ended: threading.Event) -> None:
        connection.sendall(first)
        at = 0
        while not ended.wait(0.02):
            connection.sendall(then[at % len(then) :][:1])
            at += 1

    return script


def silent(connection: socket.socket, ended: threading.Event) -> None:
    """No answer."""
    ended.wait(60)
