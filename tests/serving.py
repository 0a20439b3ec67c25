"""Helpers for tests of the server: a small vocabulary, an engine that follows a script, a server in a thread."""

import asyncio
import contextlib
import json
import threading
import time
from types import SimpleNamespace

import httpx
from cwm_core import Tokenizer
from cwm_core.inference.engine import Event
from cwm_core.inference.server import ServerLimits, create_app, listen, make_server

TEXTS = ["def f(x):\n    return x\n", "<think>\nso\n</think>\n<tool: bash>\nls -l\n</tool>\n", "été 😀 日本\n"] * 2


def small_tokenizer():
    return Tokenizer.train(TEXTS, 300)


class ScriptedHandle:
    def __init__(self, request, ids):
        self.request, self.ids, self.at, self.finish_reason = request, ids, 0, None


class ScriptedEngine:
    """Says `script(request)` to each request, a token a step, `seconds` a step; raises the exceptions in `failures`."""

    def __init__(self, tokenizer, script=None, *, max_batch=4, max_length=1000, seconds=0.0):
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=tokenizer.vocab_size, eos_token_id=()))
        self.script = script or (lambda request: [65 + i % 26 for i in range(request.max_new_tokens)])
        self.max_batch, self.max_length, self.seconds = max_batch, max_length, seconds
        self.failures = []
        self.handles = []
        self.requests = []
        self.most_running = 0

    def submit(self, request):
        if not len(request.prompt):
            raise ValueError("the prompt is empty")
        handle = ScriptedHandle(request, self.script(request))
        self.requests.append(request)
        self.handles.append(handle)
        return handle

    def cancel(self, handle):
        if handle in self.handles:
            self.handles.remove(handle)

    def step(self):
        assert self.handles, "a step with nothing to do"
        if self.seconds:
            time.sleep(self.seconds)
        if self.failures:
            raise self.failures.pop()
        events = []
        running = self.handles[: self.max_batch]
        self.most_running = max(self.most_running, len(running))
        for handle in running:
            token = handle.ids[handle.at]
            handle.at += 1
            if token in handle.request.stop_ids:
                reason = "stop"
            else:
                limit = min(len(handle.ids), handle.request.max_new_tokens)
                reason = "length" if handle.at == limit else None
            top = [(token, -0.5), (token ^ 1, -1.5)][: handle.request.top_logprobs]
            events.append(Event(handle, token, -0.5, False, top, reason))
            if reason:
                self.handles.remove(handle)
        return events

    @property
    def running(self):
        return min(len(self.handles), self.max_batch)

    @property
    def waiting(self):
        return len(self.handles) - self.running

    cache_bytes = 0


@contextlib.asynccontextmanager
async def client_of(app):
    """A client of the app in this process, within its lifespan."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
            yield client


def ask(app, path, **options):
    """One request to the app: POST with `json` or `content`, else GET."""

    async def run():
        async with client_of(app) as client:
            return await client.request("POST" if options else "GET", path, **options)

    return asyncio.run(run())


def post(app, path, body):
    return ask(app, path, json=body)


def app_of(engine, tokenizer, **options):
    limits = {name: options.pop(name) for name in list(options) if name in ServerLimits.__dataclass_fields__}
    return create_app(engine, tokenizer, name="tiny", limits=ServerLimits(**limits), **options)


@contextlib.contextmanager
def running_server(app, **options):
    """The app on a free port of this machine, in a thread; yields its URL."""
    listener = listen("127.0.0.1", 0)
    server = make_server(app, **{"drain_seconds": 5, "log_level": "critical"} | options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def events_of(text):
    """The data of server-sent events, strictly: every event one line, the last `[DONE]`."""
    assert text.endswith("\n\n"), text[-100:]
    events = text[:-2].split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def until(condition, seconds=10.0):
    """Wait for what must become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
