"""Create the ASGI application: its routes, the handling of requests, and their limits."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ...tokenizer import Tokenizer
from ..engine import Engine
from ..requests import Request
from .chat import to_messages
from .engine_thread import EngineThread, Ticket
from .exchange import Disconnected, Exchange
from .metrics import Metrics
from .protocol import ApiError, Chat, Completion, check_ids, invalid, read_chat, read_completion
from .replies import ChatChoice, Choice, CompletionChoice, Envelope

logger = logging.getLogger(__name__)

# Bodies of at least this many bytes are parsed and encoded outside the event loop.
LARGE_BODY = 16_384
# The status that metrics report when the client disconnected, as nginx does.
CLIENT_GONE = 499

_LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


@dataclass(frozen=True)
class ServerLimits:
    """Limits of requests."""

    max_queue: int = 256
    """Sequences that may wait while the engine's batch is full."""
    max_choices: int = 128
    """Sequences of one request: the number of prompts times `n`."""
    max_tokens: int | None = None
    """Generated tokens of a sequence; None is bounded only by the engine's `max_length`."""
    clamp_max_tokens: bool = False
    """Reduce a request's `max_tokens` to the possible number instead of refusing the request."""
    body_bytes: int = 4 << 20
    """Size of a request's body in bytes."""
    request_seconds: float = 600.0
    """Seconds from the arrival of the body to the last token, including the wait in the queue."""
    stall_seconds: float = 30.0
    """Seconds that a client may take to send its request, or may leave its response unread."""


@dataclass(frozen=True)
class GenerationJob:
    """A parsed request, ready for the engine."""

    request: Completion | Chat
    prompts: list[list[int]]
    sequences: list[Request]
    prefix: str = ""
    """Beginning of the assistant's message that the prompt of a chat contains."""

    def choices(self, tokenizer: Tokenizer) -> list[Choice]:
        """Return a choice for each sequence."""
        request, n = self.request, self.request.options.n
        indexed = enumerate(prompt for prompt in self.prompts for _ in range(n))
        if isinstance(request, Completion):
            return [CompletionChoice(i, tokenizer, request, prompt) for i, prompt in indexed]
        return [ChatChoice(i, tokenizer, request, prompt, self.prefix) for i, prompt in indexed]


class Service:
    """The state that the routes share."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, name: str, limits: ServerLimits, api_key: str | None
    ) -> None:
        """Prepare to serve; `create_app` documents the arguments."""
        self.engine, self.tokenizer, self.name, self.limits = engine, tokenizer, name, limits
        self.engine_thread = EngineThread(engine, limits.max_queue)
        self.metrics = Metrics(self.engine_thread)
        self.created = int(time.time())
        self._key = None if api_key is None else _digest(api_key)
        self._stop_tokens = frozenset([*engine.model.config.eos_token_id, *tokenizer.stop_tokens])

    def check_key(self, authorization: str) -> None:
        """Raise `ApiError` unless the server has no key or the header contains it."""
        scheme, _, key = authorization.partition(" ")
        if self._key is None:
            return
        # Comparing digests hides content and length of the key from timing.
        if not hmac.compare_digest(_digest(key.strip()), self._key) or scheme.lower() != "bearer":
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def check_model(self, name: str) -> None:
        """Raise `ApiError` unless `name` is the served model."""
        if name != self.name:
            raise ApiError(404, f"there is no model {name[:200]!r}", "model", "model_not_found")

    def completion(self, body: bytes) -> GenerationJob:
        """Parse a request to `/v1/completions`; raise `ApiError` if it is invalid."""
        request = read_completion(body)
        self._check(request, len(request.prompts))
        prompts = []
        for prompt in request.prompts:
            if isinstance(prompt, str):
                prompts.append(self.tokenizer.encode(prompt).tolist())
            else:
                prompts.append(list(prompt))
                check_ids(prompt, self.engine.model.config.vocab_size, "prompt")
        return GenerationJob(request, prompts, self._sequences(request, prompts))

    def chat(self, body: bytes) -> GenerationJob:
        """Parse a request to `/v1/chat/completions`; raise `ApiError` if it is invalid."""
        request = read_chat(body)
        self._check(request, 1)
        try:
            messages = to_messages(request.messages, request.tools, request.reasoning)
            ids, _ = self.tokenizer.encode_chat(messages, reasoning=request.reasoning, add_generation_prompt=True)
        except ValueError as error:
            raise invalid(str(error), "messages") from None
        is_continued = bool(messages) and messages[-1]["role"] == "assistant"
        prefix = _continued(messages[-1]) if is_continued else "<think>\n" if request.reasoning else ""
        prompts = [ids.tolist()]
        return GenerationJob(request, prompts, self._sequences(request, prompts), prefix)

    def _check(self, request: Completion | Chat, prompts: int) -> None:
        options = request.options
        if options.model is not None:
            self.check_model(options.model)
        if prompts * options.n > self.limits.max_choices:
            raise invalid(f"prompts times n may be at most {self.limits.max_choices}", "n")
        check_ids(options.stop_ids, self.engine.model.config.vocab_size, "stop_token_ids")

    def _sequences(self, request: Completion | Chat, prompts: list[list[int]]) -> list[Request]:
        options, config = request.options, self.engine.model.config
        stop_ids = frozenset(options.stop_ids).union(() if options.ignore_eos else self._stop_tokens)
        seed = secrets.randbits(63) if options.seed is None else options.seed % 2**64
        sequences: list[Request] = []
        for prompt in prompts:
            max_tokens = self._max_tokens(len(prompt), options.max_tokens)
            for _ in range(options.n):
                sequences.append(
                    Request(
                        prompt,
                        max_tokens,
                        stop_ids,
                        options.temperature,
                        options.top_p,
                        options.top_k,
                        seed=(seed, len(sequences)),
                        top_logprobs=min(options.logprobs or 0, config.vocab_size),
                    )
                )
        return sequences

    def _max_tokens(self, prompt: int, wanted: int | None) -> int:
        limit, length = self.limits.max_tokens, self.engine.max_length
        if not prompt:
            raise invalid("the prompt is empty", "prompt")
        if wanted is not None and self.limits.clamp_max_tokens and prompt < length:
            wanted = min(wanted, length - prompt, limit or length)
        if prompt + (wanted or 1) > length:
            raise invalid(
                f"the prompt of {prompt} tokens and {wanted or 1} more exceed the model's length of {length}",
                "max_tokens" if prompt < length else None,
                "context_length_exceeded",
            )
        if wanted is None:
            return min(length - prompt, limit or length)
        if limit is not None and wanted > limit:
            raise invalid(f"max_tokens may be at most {limit}", "max_tokens")
        return wanted


class Generate:
    """A route that generates text."""

    def __init__(self, service: Service, kind: type[Choice], prepare: Callable[[bytes], GenerationJob]) -> None:
        """Parse bodies with `prepare`, which returns a job or raises `ApiError`."""
        self._service, self._kind, self._prepare = service, kind, prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; report every failure as an error of the protocol."""
        service, began = self._service, time.monotonic()
        exchange = Exchange(scope, receive, send, service.limits.stall_seconds)
        status = CLIENT_GONE
        try:
            try:
                await self._serve(exchange, began)
                status = exchange.status or CLIENT_GONE
            except ApiError as error:
                status = error.status
                await _refuse(exchange, error)
            except Disconnected:
                raise
            except asyncio.CancelledError:  # the drain period of a stopping server is over
                status = 503
                await _refuse(exchange, ApiError(503, "the server is stopping"))
            except Exception:
                logger.exception("a request failed")
                status = 500
                await _refuse(exchange, ApiError(500, "the server failed"))
        except Disconnected:
            status = CLIENT_GONE
        finally:
            service.metrics.requests.labels(scope["path"], status).inc()
            service.metrics.request_seconds.observe(time.monotonic() - began)

    async def _serve(self, exchange: Exchange, began: float) -> None:
        service = self._service
        service.check_key(exchange.header("authorization"))
        service.engine_thread.check_room()  # before reading the body into memory
        body = await exchange.body(service.limits.body_bytes)
        job = await asyncio.to_thread(self._prepare, body) if len(body) >= LARGE_BODY else self._prepare(body)
        ticket = service.engine_thread.submit(job.sequences)
        service.metrics.prompt_tokens.inc(sum(map(len, job.prompts)))
        try:
            await exchange.while_connected(self._answer(exchange, job, ticket, began))
        finally:
            service.engine_thread.cancel(ticket)

    async def _answer(self, exchange: Exchange, job: GenerationJob, ticket: Ticket, began: float) -> None:
        service, options = self._service, job.request.options
        choices = job.choices(service.tokenizer)
        prompt_tokens = sum(map(len, job.prompts))
        envelope = Envelope(self._kind, service.name, int(time.time()), options, prompt_tokens)
        if options.stream:
            await exchange.begin_events()
            for choice in choices:
                if first := choice.first_chunk():
                    await exchange.event(envelope.chunk(first))
        seconds = service.limits.request_seconds
        try:
            async with asyncio.timeout(seconds):
                await self._generate(exchange, envelope, choices, ticket, began)
        except TimeoutError:
            raise ApiError(504, f"not finished within {seconds:g} seconds", code="request_timeout") from None
        if not options.stream:
            return await exchange.json(200, envelope.whole(choices, job.prompts))
        if options.include_usage:
            await exchange.event(envelope.usage_chunk(choices))
        await exchange.event("[DONE]")
        return await exchange.end_events()

    async def _generate(
        self, exchange: Exchange, envelope: Envelope, choices: list[Choice], ticket: Ticket, began: float
    ) -> None:
        """Feed the choices until all have ended, and send the chunks of a stream."""
        engine_thread, metrics = self._service.engine_thread, self._service.metrics
        firsts: dict[int, float] = {}
        unfinished = set(range(len(choices)))
        while unfinished:
            news: dict[int, list[Any]] = {}
            for index, event in await ticket.read():
                news.setdefault(index, []).append(event)
            now = time.monotonic()
            for index, events in news.items():
                if index not in unfinished:
                    continue
                if not firsts:
                    metrics.first_token.observe(now - began)
                firsts.setdefault(index, now)
                choice = choices[index]
                before = choice.tokens
                delta = choice.feed(events)
                metrics.generated_tokens.inc(choice.tokens - before)
                if delta.finish_reason:
                    unfinished.discard(index)
                    engine_thread.cancel(ticket, index)
                    if choice.tokens > 1 and now > firsts[index]:
                        metrics.token_rate.observe((choice.tokens - 1) / (now - firsts[index]))
                if choice.is_streamed and (chunk := choice.chunk(delta)):
                    await exchange.event(envelope.chunk(chunk))


async def _refuse(exchange: Exchange, error: ApiError) -> None:
    """Send an error: as a whole response, or as an event if a stream has begun."""
    if exchange.status is None:
        headers = {"retry-after": "1"} if error.status == 429 else {}
        headers |= {"www-authenticate": "Bearer"} if error.status == 401 else {}
        await exchange.json(error.status, error.body(), headers)
    else:
        await exchange.event(error.body())
        await exchange.event("[DONE]")
        await exchange.end_events()


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    name: str,
    limits: ServerLimits | None = None,
    api_key: str | None = None,
    cors_origins: Sequence[str] | None = None,
) -> Starlette:
    """Create an ASGI application that serves the engine's model with the OpenAI protocol.

    The application owns the engine during its lifespan. `app.state.service` is the state that the routes share.

    Args:
        engine: The engine.
        tokenizer: The vocabulary of the model.
        name: The name of the model in requests and answers.
        limits: Limits of requests; None uses the defaults.
        api_key: Key that requests to `/v1/` must send; None accepts all requests.
        cors_origins: Origins of web pages that may use the server from a browser; `["*"]` allows all. None allows all
            if there is an `api_key`, and otherwise only pages of this machine, so that other pages cannot use the
            model of a visitor.
    """
    service = Service(engine, tokenizer, name, limits or ServerLimits(), api_key)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.engine_thread.start()
        try:
            yield
        finally:
            await service.engine_thread.stop()

    served = {"id": name, "object": "model", "created": service.created, "owned_by": "cwm-core"}
    served |= {"max_model_len": engine.max_length}

    async def models(request: HttpRequest) -> Response:
        service.check_key(request.headers.get("authorization", ""))
        return JSONResponse({"object": "list", "data": [served]})

    async def model(request: HttpRequest) -> Response:
        service.check_key(request.headers.get("authorization", ""))
        service.check_model(request.path_params["name"])
        return JSONResponse(served)

    async def health(request: HttpRequest) -> Response:
        try:
            service.engine_thread.check_room(0)
        except ApiError as error:
            return JSONResponse(error.body(), error.status)
        return JSONResponse({"status": "ok"})

    async def metrics(request: HttpRequest) -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app = Starlette(
        routes=[
            Route("/v1/completions", Generate(service, CompletionChoice, service.completion), methods=["POST"]),
            Route("/v1/chat/completions", Generate(service, ChatChoice, service.chat), methods=["POST"]),
            Route("/v1/models", models),
            Route("/v1/models/{name:path}", model),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers={HTTPException: _http_error, ApiError: _api_error},
        middleware=[_cross_origin(cors_origins, has_key=api_key is not None)],
        lifespan=lifespan,
    )
    app.state.service = service
    return app


def _cross_origin(origins: Sequence[str] | None, *, has_key: bool) -> Middleware:
    """Return the middleware that lets web pages of other origins read answers (CORS)."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins if origins is not None else ["*"] if has_key else [],
        allow_origin_regex=_LOCAL_ORIGIN if origins is None and not has_key else None,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["retry-after"],
        max_age=600,
    )


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(ApiError(error.status_code, error.detail).body(), error.status_code, error.headers)


async def _api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body(), error.status)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _continued(message: dict[str, str]) -> str:
    """Return the beginning of the message that the model continues, as far as the splitter needs it."""
    if message.get("reasoning_content"):
        return f"<think>\n\n</think>\n{message['content']}"
    return message["content"]
