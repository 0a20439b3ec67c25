"""The client handles faulty servers: deadlines, retries, cancellation, and no key in messages."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from bad_server import bad_server, drip, reply, silent
from cwm_core.support import http, secrets

pytest.importorskip("httpx")

KEY = "sk-Not/to+be=seen"
HEAD = b"HTTP/1.1 200 OK\r\n"


def client_of(server, **options):
    return http.Client(f"{server.url}/completions", **options)


@pytest.fixture
def no_waiting(monkeypatch):
    async def pause(seconds):
        pass

    monkeypatch.setattr(http, "_pause", pause)


def test_an_answer():
    with bad_server(reply({"a": [1, "b"]})) as server:
        assert client_of(server, key=lambda: KEY).post({"x": "\udc80"}) == {"a": [1, "b"]}
    [request] = server.requests
    assert request.startswith(b"POST /v1/completions HTTP/1.1") and f"Authorization: Bearer {KEY}".encode() in request
    assert request.endswith(b'{"x": "\\udc80"}')


DRIPS = {
    "headers": drip(HEAD + b"X: "),
    "an endless header": drip(HEAD + b"X: ", b"x"),
    "a status line": drip(b"HTTP/1.1 2"),
    "a body": drip(HEAD + b"\r\n{"),
    "chunks": drip(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "nothing": silent,
}


@pytest.mark.parametrize("script", DRIPS.values(), ids=DRIPS)
def test_deadlines_hold_for_answers_that_arrive_a_byte_at_a_time(script):
    with bad_server(script) as server:
        with pytest.raises(TimeoutError, match="the deadline is over"):
            client_of(server).post({}, deadline=time.monotonic() + 0.3)
        with pytest.raises(
            http.EndpointError, match=r"not answer within 0\.3 seconds: timed out \(the last of 1 tries\)"
        ):
            client_of(server, request_seconds=0.3, retries=0).post({})


@pytest.mark.parametrize("status", [401, 503])
def test_a_slow_error_body_does_not_use_up_the_deadline(status):
    script = drip(b"HTTP/1.1 %d No\r\n\r\nno such thing" % status)
    said = f"status {status}: no such thing"
    with bad_server(script) as server, pytest.raises(http.EndpointError, match=said) as error:
        client_of(server, retries=0).post({}, deadline=time.monotonic() + 1)
    assert error.value.status == status


CUT = {
    "by its length": reply(b'{"a": 1', length=100),
    "before its length": reply(b"", length=100),
    "without a length": drip(HEAD + b"Connection: close\r\n\r\n{"),
    "in a chunk": lambda connection, _: connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n9\r\n{"),
    "with the connection": lambda connection, _: connection.sendall(HEAD + b"Connection: close\r\n\r\n" + b'{"a": '),
    "in the headers": lambda connection, _: connection.sendall(HEAD + b"X: "),
    "before all": lambda connection, _: None,
}


@pytest.mark.parametrize("script", CUT.values(), ids=CUT)
def test_a_cut_answer_is_retried(script, no_waiting):
    with bad_server(script, script, reply({"a": 1})) as server:
        assert client_of(server, request_seconds=0.5, retries=2).post({}) == {"a": 1}
        assert len(server.requests) == 3
    with bad_server(script) as server, pytest.raises(http.EndpointError, match="the last of 2 tries"):
        client_of(server, request_seconds=0.5, retries=1).post({})


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 422, 501])
def test_permanent_failures_are_not_retried(status, no_waiting):
    with bad_server(reply({"error": {"message": "no"}}, status)) as server:
        with pytest.raises(http.EndpointError, match=f"status {status}") as error:
            client_of(server).post({})
        assert len(server.requests) == 1 and error.value.status == status


@pytest.mark.parametrize(
    "text", ['{"error": "not here"}', '{"error": {"message": "not here"}}', " not\nhere ", '"not here"']
)
def test_error_messages(text):
    with bad_server(reply(text.encode(), 400)) as server, pytest.raises(http.EndpointError, match=r"400: .?not here"):
        client_of(server).post({})
    with bad_server(reply(b"", 400)) as server, pytest.raises(http.EndpointError, match="status 400: Reason"):
        client_of(server).post({})


ECHOES = {
    "the key": KEY,
    "a key at the cut": "x" * (http._SHOWN - 4) + KEY,
    "a key at the end of what is read": " " * (http._ERROR_BYTES - 5) + KEY,
    "a key as JSON has it": KEY.replace("/", "\\/"),
    "a key in a URL": "https://x/?key=" + KEY.replace("/", "%2F").replace("+", "%2B").replace("=", "%3D"),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
@pytest.mark.parametrize("status", [200, 307, 401, 503])
def test_the_key_reaches_no_message(echo, status):
    head = f"Location: /{KEY}\r\n"
    with bad_server(reply(echo.encode(), status, headers=head)) as server, pytest.raises(http.EndpointError) as error:
        client_of(server, key=lambda: KEY, retries=0).post({})
    for length in range(5, len(KEY)):
        assert KEY[:length] not in str(error.value)


def test_the_key_reaches_no_message_about_the_connection():
    def script(connection, ended):
        connection.sendall(b"HTTP/1.1 Bearer " + KEY.encode() + b"\r\n\r\n")

    with bad_server(script) as server, pytest.raises(http.EndpointError) as error:
        client_of(server, key=lambda: KEY, retries=0).post({})
    assert KEY not in str(error.value)
    with bad_server(silent) as server, pytest.raises(http.EndpointError, match="the key cannot be sent") as error:
        client_of(server, key=lambda: "a\r\nX: y").post({})
    assert "X: y" not in str(error.value)


def test_a_good_answer_that_repeats_the_key_is_cleaned():
    body = {"choices": [{"text": f"Authorization: Bearer {KEY}", KEY: ["n", 1, None, {"k": KEY}]}]}
    with bad_server(reply(body)) as server:
        answer = client_of(server, key=lambda: KEY).post({})
    assert answer == {"choices": [{"text": "Authorization: Bearer [key]", "[key]": ["n", 1, None, {"k": "[key]"}]}]}
    with bad_server(reply({"text": "an EMPTY list"})) as server:  # the usual dummy key
        assert client_of(server, key=lambda: "EMPTY").post({}) == {"text": "an EMPTY list"}


@pytest.mark.parametrize(
    "url", ["http://user:pass@host/v1", "http://:pass@host/v1", "https://host/v1?key=pass", "http://host/v1#pass"]
)
def test_urls_with_secrets_are_refused(url):
    with pytest.raises(ValueError, match="the URL of the endpoint at host") as error:
        http.Client(url)
    assert "pass" not in str(error.value)


def test_no_redirects(no_waiting):
    with bad_server(reply({})) as other:
        place = f"Location: {other.url}\r\n"
        with (
            bad_server(reply(b"", 307, headers=place)) as server,
            pytest.raises(http.EndpointError, match="redirect to"),
        ):
            client_of(server).post({})
        assert not other.requests


@pytest.mark.parametrize("script", [silent, DRIPS["a body"], reply({}, 503, headers="Retry-After: 50\r\n")])
def test_requests_are_cancelled_from_another_thread(script):
    with bad_server(script) as server:
        client, ended = client_of(server), []

        def ask():
            try:
                client.post({})
            except http.Cancelled as error:
                ended.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        while len(server.requests) < 3:
            time.sleep(0.01)
        client.cancel()
        for thread in threads:
            thread.join(10)
        assert len(ended) == 3
        with pytest.raises(TimeoutError):  # it can be used again
            client.post({}, deadline=time.monotonic() + 0.1)


def test_an_interrupt_ends_a_request():
    code = "import sys\nfrom cwm_core.support.http import Client\nClient(sys.argv[1]).post({})"
    with bad_server(silent) as server:
        asking = subprocess.Popen([sys.executable, "-c", code, server.url], stderr=subprocess.PIPE)
        while not server.requests:
            time.sleep(0.01)
        asking.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in asking.communicate(timeout=20)[1]


def test_a_forked_process_can_send_requests():
    with bad_server(reply({"a": 1})) as server:
        client = client_of(server)
        client.post({})
        child = os.fork()
        if not child:
            os._exit(0 if client.post({}) == {"a": 1} else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_without_httpx(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install '\.\[http\]' in a checkout"):
        http.Client("http://localhost")


# ---- secrets of the environment


def test_child_processes_get_no_secrets(monkeypatch):
    for name in ("CWM_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "github_token"):
        monkeypatch.setenv(name, "sk-" + name)
    monkeypatch.setenv("MY_VARIABLE", "sk-of-my-own")
    secrets.protect("MY_VARIABLE")
    monkeypatch.setenv("ALIAS", "Bearer sk-of-my-own")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "sk-of-ray")
    before = dict(os.environ)
    kept = secrets.public()
    assert "sk-" not in "".join(f"{name}={value}" for name, value in kept.items() if name != "RAY_AUTH_TOKEN")
    assert {"PATH", "TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN"} <= kept.keys()
    with secrets.hidden():
        assert dict(os.environ) == kept
        assert b"sk-of-my-own" not in subprocess.run(["env"], capture_output=True, check=True).stdout
    assert dict(os.environ) == before and secrets.get("MY_VARIABLE") == "sk-of-my-own"


def test_secrets_do_not_show_their_values():
    sent = secrets.Secrets({"A_KEY": KEY})
    assert KEY not in f"{sent} {sent!r} {[sent]}" and sent["A_KEY"] == KEY
