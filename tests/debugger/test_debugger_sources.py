"""Frames from a completions server, against a local one that speaks the protocol as vLLM does."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from cwm_core.debugger import Debugger, ServerFrames, SourceError
from debugging import CALL, CODE, END, FRAME_SEP, TOKENIZER, Recorded, debugger, encoded


def whole(ids):
    """Answer like vLLM: all tokens, including the stop token."""
    reason = int(ids[-1]) if ids[-1] != END else None  # null for the model's own end token
    return {
        "text": "",
        "finish_reason": "stop",
        "stop_reason": reason,
        "token_ids": ids.tolist(),
        "logprobs": {"token_logprobs": [-0.5] * len(ids), "tokens": [f"token_id:{i}" for i in ids]},
    }


def in_logprobs(ids):
    """Answer like a version of vLLM without `return_token_ids`."""
    answer = whole(ids)
    del answer["token_ids"]
    return answer


def without_stop(ids):
    """Answer like servers that omit the stop token."""
    return whole(ids) | {"token_ids": ids[:-1].tolist(), "logprobs": None}


@contextmanager
def serving(handle, models=None):
    """Start a server, return its address. `handle(handler, body)` answers requests, `models` lists the models."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            handle(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def do_GET(self):
            if models is None:
                return self.send_error(404)
            assert self.path == "/v1/models"
            reply(self, models)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def reply(handler, data, status=200, **headers):
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(data))} | headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


@pytest.mark.parametrize("choice", [whole, in_logprobs, without_stop])
def test_a_whole_session_over_a_server(choice):
    _, trace = debugger()
    source, seen = Recorded(trace), []

    def handle(handler, body):
        seen.append((handler.path, handler.headers["Authorization"], body))
        ids, _ = source.next_frame(np.array(body["prompt"], np.int32), body["seed"], body["temperature"])
        reply(handler, json.dumps({"choices": [choice(ids)]}).encode())

    with serving(handle) as url:
        frames = ServerFrames(url + "/", "cwm", TOKENIZER, api_key="secret", max_frame_tokens=77)
        subject = Debugger(frames, TOKENIZER, CODE, CALL, seed=3, temperature=0.5)
        assert subject.continue_to().reason == "end"
    assert np.array_equal(np.append(subject.ids, END), encoded(trace)) and subject.finished
    path, key, body = seen[0]
    assert (path, key) == ("/v1/completions", "Bearer secret")
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("cwm", 77, 0.5)
    assert body["stop_token_ids"] == [FRAME_SEP, END] and len({body["seed"] for *_, body in seen}) == len(trace)
    step = subject.current
    if choice is without_stop:
        assert step.probability is None
    else:
        assert step.probability == pytest.approx(np.exp(-0.5 * len(step.ids)), rel=1e-5)


def test_a_frame_that_is_cut():
    def handle(handler, body):
        assert "model" not in body
        choice = {"finish_reason": "length", "stop_reason": None, "token_ids": [1, 2], "logprobs": None}
        reply(handler, json.dumps({"choices": [choice]}).encode())

    with serving(handle) as url:
        subject = Debugger(ServerFrames(url, None, TOKENIZER), TOKENIZER, CODE, CALL)
        stop = subject.step()
    assert stop.reason == "malformed" and "cut after 2 tokens" in stop.message


def choices(*tokens, **more):
    return json.dumps({"choices": [{"token_ids": list(tokens), "finish_reason": "length"} | more]}).encode()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda h: reply(h, b'{"error": "no such\\nmodel"}', 404), "status 404: no such model"),
        (lambda h: reply(h, b"", 302, Location="http://127.0.0.1:1/elsewhere"), "302"),
        (lambda h: reply(h, b"", 307, Location="http://127.0.0.1:1/elsewhere"), "307"),
        (lambda h: reply(h, b"hello"), "is not a JSON object"),
        (lambda h: reply(h, b"[" * 100_000), "is not a JSON object"),
        (lambda h: reply(h, b"[]"), "is not a JSON object"),
        (lambda h: reply(h, b"{}"), "cannot read tokens from the answer: KeyError"),
        (lambda h: reply(h, b'{"choices": []}'), "cannot read tokens from the answer"),
        (lambda h: reply(h, b'{"choices": [{"text": "x = 1"}]}'), "cannot read tokens from the answer: KeyError"),
        (lambda h: reply(h, b'{"choices": [7]}'), "cannot read tokens from the answer"),
        (lambda h: reply(h, choices(1, 10**9)), "not in the vocabulary"),
        (lambda h: reply(h, choices(-1)), "not in the vocabulary"),
        (lambda h: reply(h, choices(1, "x")), "not in the vocabulary"),
        (lambda h: reply(h, choices(True)), "not in the vocabulary"),
        (lambda h: reply(h, choices(1, logprobs={"token_logprobs": [10**400]})), "OverflowError"),
        (lambda h: reply(h, choices(1, logprobs={"token_logprobs": {"a": 1}})), "cannot read tokens from the answer"),
        (lambda h: reply(h, b" " * (3 << 20)), "longer than 1,052,688 bytes"),
        (lambda h: h.wfile.write(b"nonsense\r\n\r\n"), "nonsense"),
        (lambda h: None, ""),
    ],
)
def test_answers_that_are_none(answer, why):
    with serving(lambda handler, body: answer(handler)) as url:
        frames = ServerFrames(url, "cwm", TOKENIZER, max_frame_tokens=4, retries=0)
        with pytest.raises(SourceError) as error:
            frames.next_frame(np.array([1], np.int32), 0, 0.0)
    assert why in str(error.value) and str(error.value).startswith(frames.url) and len(str(error.value)) < 1000


def test_a_server_that_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/v1"
        frames = ServerFrames(url, "cwm", TOKENIZER, timeout=0.2, retries=0)
        with pytest.raises(SourceError, match="timed out"):
            frames.next_frame(np.array([1], np.int32), 0, 0.0)
    with pytest.raises(SourceError, match="refused"):
        frames.next_frame(np.array([1], np.int32), 0, 0.0)


def test_addresses():
    for url in ("file:///etc/passwd", "localhost:8000", ""):
        with pytest.raises(ValueError, match="begins with http"):
            ServerFrames(url, "cwm", TOKENIZER)
    for url in ("http://[", "http://", "http://x:port", "http://x:99999"):
        with pytest.raises(ValueError, match=r"the URL of the endpoint is invalid|expected a URL "):
            ServerFrames(url, "cwm", TOKENIZER)


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        ([{"id": "cwm", "max_model_len": 50}], 40),
        ([{"id": "other", "max_model_len": 20}, {"id": "cwm", "max_model_len": 1000}], 77),
        ([{"id": "other", "max_model_len": 20}], 77),
        ([{"id": "cwm"}], 77),
        ([{"id": "cwm", "max_model_len": "50"}], 77),
        ([], 77),
        ([7], 77),
    ],
)
def test_no_more_tokens_are_asked_for_than_the_model_of_a_server_has_left(models, asked):
    bodies = []

    def handle(handler, body):
        bodies.append(body)
        reply(handler, choices(1))

    with serving(handle, json.dumps({"data": models}).encode()) as url:
        frames = ServerFrames(url, "cwm", TOKENIZER, max_frame_tokens=77)
        for _ in range(2):
            frames.next_frame(np.arange(10, dtype=np.int32), 0, 0.0)
    assert [body["max_tokens"] for body in bodies] == [asked, asked]


def test_a_full_context_of_a_server():
    with serving(lambda *_: pytest.fail("asked"), b'{"data": [{"id": "cwm", "max_model_len": 10}]}') as url:
        frames = ServerFrames(url, None, TOKENIZER)
        with pytest.raises(SourceError, match="the model's context of 10 tokens is full"):
            frames.next_frame(np.arange(10, dtype=np.int32), 0, 0.0)
