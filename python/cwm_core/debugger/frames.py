"""Where predicted frames come from, one at a time: an engine in this process, or a completions server."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any, Protocol

import numpy as np

from ..inference.engine import Engine
from ..inference.grammar import TraceGrammar
from ..support.http import Client, EndpointError
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import END_OF_TEXT, FRAME_SEP

# An answer of a server holds at most this many bytes for each token asked for, and some more.
_ANSWER_BYTES_PER_TOKEN, _ANSWER_BYTES = 1 << 10, 1 << 20


_UNKNOWN = object()  # the server was not asked yet


class SourceError(RuntimeError):
    """A source of frames could not give any: no connection, an error of the server, a context that is full."""


class FrameSource(Protocol):
    """Predicts the frame after a sequence of tokens."""

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of one more frame with its `<|frame_sep|>`, or the end token alone, as a model writes them.

        `ids` is int32 [n], a context and whole frames. Equal arguments give equal frames as far as the source is
        deterministic. Returns int32 [m] and float32 [m], log probabilities in nats, NaN where unknown. A frame that
        grew too long is cut, which its last token shows. Raises `SourceError`.
        """
        ...


def frame_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """The tokens that end a frame and a trace. Raises ValueError for a vocabulary that lacks them."""
    try:
        return tokenizer.special_tokens[FRAME_SEP], tokenizer.special_tokens[END_OF_TEXT]
    except KeyError as error:
        raise ValueError(f"{error} is not a special token of this vocabulary, which a trace needs") from None


def _room(wanted: int, length: int | None, ids: np.ndarray) -> int:
    """How many of `wanted` tokens fit a context after `ids`; all where its length is None. SourceError for none."""
    if length is None:
        return wanted
    if len(ids) >= length:
        raise SourceError(f"the model's context of {length:,} tokens is full")
    return min(wanted, length - len(ids))


class EngineFrames:
    """Frames from an `Engine` in this process."""

    def __init__(
        self, engine: Engine, *, max_frame_tokens: int = 4096, constrained: bool = True, **options: Any
    ) -> None:
        """`constrained` frames are well formed, if not cut. `options` go to `Engine.generate`.

        Raises ValueError when the engine has no tokenizer, or as `frame_ends`.
        """
        if engine.tokenizer is None:
            raise ValueError("predicting frames needs an engine with a tokenizer")
        self.engine = engine
        self.max_frame_tokens = max_frame_tokens
        self.options = options
        self._grammar = (
            TraceGrammar(engine.tokenizer, vocab_size=engine.model.config.vocab_size) if constrained else None
        )
        # Where a model's own stop tokens come, its frame is over, if not well formed.
        self._stop_ids = {*frame_ends(engine.tokenizer), *engine.stop_tokens}

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """See `FrameSource`."""
        limit = _room(self.max_frame_tokens, self.engine.max_length, ids)
        constraints = [self._grammar.constraint(ids)] if self._grammar else None
        generation = self.engine.generate(
            [ids],
            limit,
            self._stop_ids,
            temperature=temperature,
            seed=seed,
            constraints=constraints,
            **self.options,
        )[0]
        return generation.ids, generation.logprobs


class ServerFrames:
    """Frames from a server of the OpenAI completions interface that takes and gives token ids, as vLLM does.

    It should state `max_model_len` in its answer to `GET BASE_URL/models`: then no more tokens are asked for than its
    context has left.

    It must answer `POST BASE_URL/completions` with a prompt of token ids, stop at `stop_token_ids`, and return the
    tokens as `token_ids`, which `return_token_ids` asks for, or name them `token_id:N` in its log probabilities, as a
    vLLM older than 0.10.2 does that was started with `--return-tokens-as-token-ids`.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None,
        tokenizer: Tokenizer,
        *,
        api_key: str | None = None,
        max_frame_tokens: int = 4096,
        timeout: float = 120.0,
        retries: int = 2,
    ) -> None:
        """Prepare requests; nothing is sent yet.

        Args:
            base_url: What comes before `/completions`, as `http://localhost:8000/v1`.
            model: The name that the server knows it by; None where it needs none.
            tokenizer: The vocabulary of the model.
            api_key: The server's key, if it wants one.
            max_frame_tokens: The longest frame that is asked for.
            timeout: Seconds for a frame, all tries together.
            retries: Most tries after the first where a failure may pass; see `support.http.Client`.

        Raises:
            ValueError: The address is not one of HTTP, or may hold a secret; or as `frame_ends`.
            ModuleNotFoundError: httpx is not installed.
        """
        key = (api_key or "").strip()
        base = base_url.rstrip("/")
        self._client = Client(f"{base}/completions", key=lambda: key, request_seconds=timeout, retries=retries)
        self._models = Client(f"{base}/models", key=lambda: key, request_seconds=timeout, retries=0)
        self.url = self._client.url
        self.model = model
        self.max_frame_tokens = max_frame_tokens
        self.timeout = timeout
        self._vocab_size = tokenizer.vocab_size
        self._stop_ids = list(frame_ends(tokenizer))
        self._length: Any = _UNKNOWN

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """See `FrameSource`."""
        max_tokens = _room(self.max_frame_tokens, self._context_length(), ids)
        answer = self._post(
            ({} if self.model is None else {"model": self.model})
            | {
                "prompt": np.asarray(ids).tolist(),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
                "stop_token_ids": self._stop_ids,
                "skip_special_tokens": False,
                "logprobs": 0,  # of the chosen tokens alone
                "return_token_ids": True,
            }
        )
        try:
            return self._read(answer["choices"][0])
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise SourceError(f"{self.url}: the answer has no tokens that can be read: {error!r}") from None

    def _read(self, choice: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        scores = choice.get("logprobs") or {}
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = [int(text.removeprefix("token_id:")) for text in scores["tokens"]]
        if not all(map(self._is_token, tokens)):
            raise ValueError("a token id is not in the vocabulary")
        given = scores.get("token_logprobs") or []
        logprobs = [math.nan if value is None else float(value) for value in given[: len(tokens)]]
        # Servers differ in whether the token that stopped them is among those they return.
        if choice.get("finish_reason") == "stop" and not (tokens and tokens[-1] in self._stop_ids):
            reason = choice.get("stop_reason")  # null where it was the model's own end token
            tokens = [*tokens, reason if self._is_token(reason) else self._stop_ids[1]]
        logprobs += [math.nan] * (len(tokens) - len(logprobs))
        return np.array(tokens, np.int32), np.array(logprobs, np.float32)

    def _is_token(self, value: object) -> bool:
        return type(value) is int and 0 <= value < self._vocab_size

    def _context_length(self) -> int | None:
        """The tokens of prompt and answer together that the server's list of models states; None where it states none.

        Servers refuse a request for more tokens than are left, so `next_frame` must know.
        """
        if self._length is _UNKNOWN:
            self._length = None
            with suppress(EndpointError, TimeoutError, LookupError, TypeError, AttributeError):
                models = self._get_models()["data"]
                named = [model for model in models if self.model in (None, model["id"])]
                if type(length := named[0]["max_model_len"]) is int:
                    self._length = length
        return self._length

    def _get_models(self) -> dict[str, Any]:
        """Return the server's list of models; raise EndpointError or TimeoutError where it has none."""
        return self._models.get(deadline=time.monotonic() + self.timeout, max_bytes=_ANSWER_BYTES)

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        # An answer may repeat the prompt.
        limit = _ANSWER_BYTES + _ANSWER_BYTES_PER_TOKEN * self.max_frame_tokens + 16 * len(body["prompt"])
        deadline = time.monotonic() + self.timeout
        try:
            return self._client.post(body, deadline=deadline, max_bytes=limit)
        except TimeoutError as error:
            raise SourceError(f"{error} (timed out after {self.timeout:g} seconds)") from None
        except EndpointError as error:
            raise SourceError(str(error)) from None
