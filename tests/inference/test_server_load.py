"""A real server on a port of this machine: many clients, rude clients, slow clients, and its end."""

import asyncio
import gc
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx
from cwm_core.inference import Engine
from cwm_core.inference.engine import Request
from cwm_core.inference.server import engine_thread
from cwm_core.inference.server.protocol import ApiError
from cwm_core.model import preset, save
from random_models import random_model
from serving import ScriptedEngine, app_of, events_of, running_server, small_tokenizer, until

TOKENIZER = small_tokenizer()
TINY = preset(
    "tiny",
    vocab_size=TOKENIZER.vocab_size,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    head_dim=8,
    sliding_window=16,
)
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"


def http(path, body, *headers):
    """A request as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    if not any(header.startswith(("content-length", "transfer-encoding")) for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def body_of(**fields):
    return json.dumps({"prompt": "x", "max_tokens": 5, **fields}).encode()


def assert_quiet(app, engine):
    """Nothing runs, waits or is counted as open."""
    service = app.state.service
    worker = service.engine_thread
    until(lambda: worker.open == 0 and engine.running == 0 and engine.waiting == 0)
    # The last events still go from one thread to the other.
    until(lambda: not (worker._outbox or worker._submitted or worker._cancelled))


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def one_of_many(client, number, seen):
    """One client of the mixed load; counts what it saw."""
    rng = random.Random(number)
    path = rng.choice([COMPLETIONS, CHATS])
    body = {"max_tokens": rng.randint(1, 40), "stream": rng.random() < 0.7, "n": rng.choice([1, 1, 2])}
    body |= (
        {"prompt": "def f" * rng.randint(1, 9)}
        if path == COMPLETIONS
        else {"messages": [{"role": "user", "content": "x"}]}
    )
    kind = rng.choice(["good"] * 4 + ["leaves", "leaves", "malformed", "wrong", "large"])
    if kind == "leaves":
        with_timeout = client.stream("POST", path, json=body | {"stream": True, "max_tokens": 200})
        async with with_timeout as response:
            async for _ in response.aiter_raw():
                break
        seen["left"] += 1
        return
    if kind == "good":
        response = await client.post(path, json=body)
    else:
        content = {"malformed": b'{"prompt": ', "wrong": b'{"prompt": {}, "messages": 1}', "large": b" " * 300_000}[
            kind
        ]
        response = await client.post(path, content=content, headers={"content-type": "application/json"})
    expected = {"good": (200, 429), "malformed": (400, 429), "wrong": (400, 429), "large": (413, 429)}[kind]
    assert response.status_code in expected, response.text
    if response.headers["content-type"].startswith("text/event-stream"):
        events = events_of(response.text)
        assert not any("error" in event for event in events)
        ends = [event["choices"][0]["index"] for event in events if event["choices"][0]["finish_reason"]]
        assert sorted(ends) == list(range(body["n"]))
    elif response.status_code == 200:
        assert len(response.json()["choices"]) == body["n"]
    else:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    seen[response.status_code] += 1


@pytest.mark.parametrize("kind", ["scripted", "model"])
def test_hundreds_of_clients_of_all_kinds(kind):
    if kind == "scripted":
        engine, rounds, clients = ScriptedEngine(TOKENIZER, max_batch=32, seconds=0.001), 3, 200
    else:
        engine, rounds, clients = Engine(random_model(TINY), TOKENIZER, max_batch=32, max_length=512), 1, 100
    threads = threading.active_count()
    app = app_of(engine, TOKENIZER, max_queue=200, body_bytes=200_000)
    memory = []

    async def load(url, start):
        seen = dict.fromkeys(["left", 200, 400, 413, 429], 0)
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            await asyncio.gather(*(one_of_many(client, start + i, seen) for i in range(clients)))
        assert seen["left"] and seen[200] and seen[400] and seen[413]
        return seen

    with running_server(app, stall_seconds=10) as url:
        for number in range(rounds):
            asyncio.run(load(url, number * clients))
            assert_quiet(app, engine)
            gc.collect()
            memory.append(resident_bytes())
        assert httpx.get(url + "/health").status_code == 200
        assert "cwm_sequences_open 0.0" in httpx.get(url + "/metrics").text
    assert threading.active_count() == threads
    if kind == "model":
        assert not engine._cache.lengths.any()
    # Later rounds find what the first allocated; a leaked answer of each client would be some megabytes a round.
    assert rounds == 1 or memory[-1] - memory[0] < 32 << 20, memory


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_the_cache_at_once(stream):
    engine = ScriptedEngine(TOKENIZER, max_batch=1, max_length=10**9, seconds=0.01)
    app = app_of(engine, TOKENIZER)
    with running_server(app) as url:
        first, second = connect(url), connect(url)
        for client in (first, second):  # one runs, the other waits
            client.sendall(http(COMPLETIONS, body_of(max_tokens=10**6, stream=stream)))
        until(lambda: len(engine.handles) == 2)
        second.close()
        until(lambda: len(engine.handles) == 1)
        first.close()
        until(lambda: not engine.handles)
        assert_quiet(app, engine)
        until(lambda: 'status="499"} 2.0' in httpx.get(url + "/metrics").text)


def test_who_does_not_read_is_given_up():
    engine = ScriptedEngine(TOKENIZER, max_batch=100, max_length=10**9, seconds=0.005)
    app = app_of(engine, TOKENIZER, stall_seconds=0.5)
    with running_server(app, stall_seconds=0.5) as url:
        client = connect(url)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(http(COMPLETIONS, body_of(max_tokens=10**5, n=100, stream=True, return_token_ids=True)))
        until(lambda: engine.handles)
        until(lambda: not engine.handles, 30)
        assert_quiet(app, engine)
        # The connection itself goes as well, not only what was generated for it.
        port = int(url.rsplit(":")[-1])
        until(lambda: not is_established(port, client.getsockname()[1]))
        client.close()


def test_output_that_waits_for_a_client_is_bounded(monkeypatch):
    monkeypatch.setattr(engine_thread, "MAX_UNREAD", 100)
    engine = ScriptedEngine(TOKENIZER, max_length=10**9, seconds=0.0001)
    app = app_of(engine, TOKENIZER)

    async def fill():
        service = app.state.service
        async with app.router.lifespan_context(app):
            ticket = service.engine_thread.submit([Request([1], 10**5, frozenset())])
            while ticket.open:
                await asyncio.sleep(0.01)
            with pytest.raises(ApiError, match="too slowly"):
                await ticket.read()
            assert service.engine_thread.open == 0
            until(lambda: not engine.handles)

    asyncio.run(fill())


def is_established(port, other):
    """Whether the server still holds the connection, by the kernel's table."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = {(int(row[1].split(":")[1], 16), int(row[2].split(":")[1], 16)) for row in rows if row[3] == "01"}
    return (port, other) in ends


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/comp",
        http(COMPLETIONS, b"", "content-length: 50") + b'{"pro',
        http(COMPLETIONS, b"", "content-length: 0"),
    ],
    ids=["nothing", "part of the headers", "part of the body", "no more requests"],
)
def test_who_says_nothing_more_is_given_up(sent):
    engine = ScriptedEngine(TOKENIZER)
    with running_server(app_of(engine, TOKENIZER, stall_seconds=0.3), stall_seconds=0.3) as url:
        client = connect(url)
        client.sendall(sent)
        client.settimeout(15)
        began, received = time.monotonic(), b""
        while data := receive(client):
            received += data
        assert time.monotonic() - began < 10
        if sent.startswith(b"POST /v1/completions"):
            status = b"408" if b"{" in sent else b"400"
            assert received.startswith(b"HTTP/1.1 " + status)
            assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"]


def receive(client):
    try:
        return client.recv(65536)
    except ConnectionResetError:
        return b""


def test_bodies_without_end_are_refused():
    engine = ScriptedEngine(TOKENIZER)
    app = app_of(engine, TOKENIZER, body_bytes=10_000)
    with running_server(app) as url:
        for headers in (["content-length: 99999999999999999999"], ["transfer-encoding: chunked"]):
            client = connect(url)
            client.sendall(http(COMPLETIONS, b"", *headers))
            if "chunked" in headers[0]:
                client.sendall(b"2000\r\n" + b" " * 0x2000 + b"\r\n" + b"2000\r\n" + b" " * 0x2000 + b"\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 413")
            client.close()
        assert_quiet(app, engine)


def test_garbage_is_answered_or_closed():
    engine = ScriptedEngine(TOKENIZER)
    rng = random.Random(5)
    with running_server(app_of(engine, TOKENIZER)) as url:
        for _ in range(30):
            client = connect(url)
            client.sendall(rng.randbytes(rng.randint(1, 200)) + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            answer = receive(client)
            assert not answer or re.match(rb"HTTP/1.1 4\d\d", answer)
            client.close()
        client = connect(url)
        client.sendall(b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert receive(client).startswith(b"HTTP/1.1 4")
        client.close()
        assert httpx.get(url + "/health").status_code == 200


def test_open_requests_finish_or_fail_at_shutdown():
    for seconds, drain in [(0.005, 10), (0.05, 1)]:
        engine = ScriptedEngine(TOKENIZER, seconds=seconds)
        answers = []
        with running_server(app_of(engine, TOKENIZER), drain_seconds=drain) as url:

            def ask(url=url, answers=answers):
                answers.append(httpx.post(url + COMPLETIONS, json={"prompt": "x", "max_tokens": 100}, timeout=30))

            thread = threading.Thread(target=ask)
            thread.start()
            until(lambda engine=engine: engine.handles)
        thread.join()
        [answer] = answers
        if drain > 1:
            assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 100
        else:
            assert answer.status_code == 503 and answer.json()["error"]["message"] == "the server is stopping"
        assert not engine.handles


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(random_model(TINY), folder)
    TOKENIZER.save(folder)
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command(folder, number, code):
    command = [sys.executable, "-m", "cwm_core", "serve", str(folder), "--port", "0", "--max-length", "512"]
    environment = {**os.environ, "CWM_API_KEY": "secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            url = re.search(r"http://\S+(?=/v1)", process.stderr.readline())[0]
            until(lambda: answers(url), 30)
            headers = {"authorization": "Bearer secret"}
            assert httpx.get(url + "/v1/models").status_code == 401
            answer = httpx.post(url + COMPLETIONS, json={"prompt": "def", "seed": 1}, headers=headers, timeout=60)
            assert answer.json()["usage"]["completion_tokens"] == 16
            assert answer.json()["model"] == "tiny"
            running = {"prompt": "x", "max_tokens": 300, "stream": True, "ignore_eos": True}
            with httpx.stream("POST", url + COMPLETIONS, json=running, headers=headers, timeout=60) as stream:
                lines = stream.iter_text()
                text = next(lines)
                process.send_signal(number)
                text += "".join(lines)
            assert events_of(text)[-1]["choices"][0]["finish_reason"] == "length"
            assert process.wait(30) == code
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def answers(url):
    try:
        return httpx.get(url + "/health").status_code == 200
    except httpx.TransportError:
        return False


def test_wrong_usage(folder, tmp_path, monkeypatch, capsys):
    from cwm_core.cli import main

    monkeypatch.delenv("CWM_API_KEY", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(folder), "--host", "0.0.0.0", "--port", "0"])
    assert stop.value.code == 2
    assert "--api-key-file" in capsys.readouterr().err
    empty = tmp_path / "key"
    empty.write_text("\n")
    assert main(["serve", str(folder), "--api-key-file", str(empty)]) == 1
    assert "the API key is empty" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(folder), "--port", str(taken.getsockname()[1])]) == 1
    assert "in use" in capsys.readouterr().err
    assert main(["serve", str(folder), "--port", "0", "--device", "cuda:99"]) == 1
    assert main(["serve", str(tmp_path / "none"), "--port", "0"]) == 1
