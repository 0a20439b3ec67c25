"""Predict frames one at a time, with an engine in this process or with a completions server."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import numpy as np

from .._native import CwmError
from ..inference.engine import Engine
from ..inference.grammar import TraceGrammar
from ..support.http import Client, EndpointError
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import END_OF_TEXT, FRAME_SEP

# Limits of the size of a server's answer: for each requested token, and for the rest.
_ANSWER_BYTES_PER_TOKEN, _ANSWER_BYTES = 1 << 10, 1 << 20

# Share of a frame's time that the list of models may take, so that a server which does not answer costs one timeout.
_MODELS_SHARE = 0.25


class SourceError(CwmError):
    """A source cannot predict a frame: the server refuses, fails or cannot be reached, or the context is full."""


class PredictedFrame(NamedTuple):
    """The tokens of a predicted frame."""

    ids: np.ndarray
    """Tokens up to and including `<|frame_sep|>`, int32 [n]; the end token alone at the end of the trace."""
    logprobs: np.ndarray
    """Log probability of each token in nats, float32 [n]; NaN if unknown."""


class FrameSource(Protocol):
    """Predicts the frame after a sequence of tokens."""

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> PredictedFrame:
        """Predict one frame.

        Args:
            ids: Tokens of a context and whole frames, int32 [n].
            seed: Seed of the samples; a deterministic source returns equal frames for equal arguments.
            temperature: Sampling temperature; 0 takes the most likely token.

        Returns:
            The tokens and their log probabilities. A frame that is too long is cut: it has no final `<|frame_sep|>`.

        Raises:
            SourceError: The source cannot predict a frame.
        """
        ...


def frame_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the tokens that end a frame and a trace; raise ValueError if the vocabulary lacks them."""
    try:
        return tokenizer.special_tokens[FRAME_SEP], tokenizer.special_tokens[END_OF_TEXT]
    except KeyError as error:
        raise ValueError(f"the vocabulary lacks {error}, a special token of the trace format") from None


def _room(wanted: int, length: int | None, ids: np.ndarray) -> int:
    """Return how many of `wanted` tokens fit into a context of `length` tokens after `ids`, all if it is None.

    Raises:
        SourceError: The context is full.
    """
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
        """Predict frames with an engine.

        Args:
            engine: An engine with a tokenizer.
            max_frame_tokens: Maximum number of tokens in a frame.
            constrained: Generate only well-formed frames; only the limit can cut them.
            options: Further arguments of `Engine.generate`.

        Raises:
            ValueError: The engine has no tokenizer, or its vocabulary lacks a special token of the trace format.
        """
        if engine.tokenizer is None:
            raise ValueError("the engine has no tokenizer, which predictions need: Engine(model, tokenizer)")
        self.engine = engine
        self.max_frame_tokens = max_frame_tokens
        self.options = options
        # A model's own stop tokens end its frame too, which is then malformed.
        self._stop_ids = {*frame_ends(engine.tokenizer), *engine.stop_tokens}
        self._grammar = (
            TraceGrammar(engine.tokenizer, vocab_size=engine.model.config.vocab_size) if constrained else None
        )

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> PredictedFrame:
        """Predict one frame; see `FrameSource`."""
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
        return PredictedFrame(generation.ids, generation.logprobs)


class ServerFrames:
    """Predict frames with a server of the OpenAI completions protocol that accepts and returns token ids, like vLLM.

    The server must accept a prompt of token ids at `POST BASE_URL/completions` and stop at `stop_token_ids`. It must
    return `token_ids` if `return_token_ids` is set, or name tokens `token_id:N` in its log probabilities, as vLLM
    before 0.10.2 does with `--return-tokens-as-token-ids`.

    It should report `max_model_len` at `GET BASE_URL/models`, so that no request exceeds its context.
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
        """Prepare requests without sending any.

        Args:
            base_url: Address before `/completions`, such as `http://localhost:8000/v1`.
            model: The name of the model on the server; None if the server needs none.
            tokenizer: The vocabulary of the model.
            api_key: The key of the server, if it needs one.
            max_frame_tokens: Maximum number of tokens in a frame.
            timeout: Seconds for a frame, including retries and the list of models.
            retries: Maximum number of retries after temporary failures; see `support.http.Client`.

        Raises:
            ValueError: The address is not an HTTP URL or may contain a secret, or the vocabulary lacks a special token
                of the trace format.
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
        self._length: int | None = None
        self._has_asked_length = False

    def next_frame(self, ids: np.ndarray, seed: int, temperature: float) -> PredictedFrame:
        """Predict one frame; see `FrameSource`."""
        deadline = time.monotonic() + self.timeout
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
                "logprobs": 0,  # only of the chosen tokens
                "return_token_ids": True,
            },
            deadline,
        )
        try:
            return self._read(answer["choices"][0])
        except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise SourceError(f"{self.url}: cannot read tokens from the answer: {error!r}") from None

    def _read(self, choice: dict[str, Any]) -> PredictedFrame:
        scores = choice.get("logprobs") or {}
        tokens = choice.get("token_ids")
        if tokens is None:
            tokens = [int(text.removeprefix("token_id:")) for text in scores["tokens"]]
        if not all(map(self._is_token, tokens)):
            raise ValueError("a token id is not in the vocabulary")
        given = scores.get("token_logprobs") or []
        logprobs = [math.nan if value is None else float(value) for value in given[: len(tokens)]]
        # Only some servers include the stop token in the answer.
        if choice.get("finish_reason") == "stop" and not (tokens and tokens[-1] in self._stop_ids):
            reason = choice.get("stop_reason")  # null for the model's own end token
            tokens = [*tokens, reason if self._is_token(reason) else self._stop_ids[1]]
        logprobs += [math.nan] * (len(tokens) - len(logprobs))
        return PredictedFrame(np.array(tokens, np.int32), np.array(logprobs, np.float32))

    def _is_token(self, value: object) -> bool:
        return type(value) is int and 0 <= value < self._vocab_size

    def _context_length(self) -> int | None:
        """Return the context length that the server's list of models reports; None if it reports none.

        Servers refuse requests for more tokens than the context has left.
        """
        if not self._has_asked_length:
            self._has_asked_length = True
            with suppress(EndpointError, TimeoutError, LookupError, TypeError, AttributeError):
                models = self._get_models()["data"]
                named = [model for model in models if self.model in (None, model["id"])]
                if type(length := named[0]["max_model_len"]) is int:
                    self._length = length
        return self._length

    def _get_models(self) -> dict[str, Any]:
        """Return the server's list of models; raise EndpointError or TimeoutError if it has none."""
        deadline = time.monotonic() + self.timeout * _MODELS_SHARE
        return self._models.get(deadline=deadline, max_bytes=_ANSWER_BYTES)

    def _post(self, body: dict[str, Any], deadline: float) -> dict[str, Any]:
        # An answer may repeat the prompt.
        limit = _ANSWER_BYTES + _ANSWER_BYTES_PER_TOKEN * self.max_frame_tokens + 16 * len(body["prompt"])
        try:
            return self._client.post(body, deadline=deadline, max_bytes=limit)
        except TimeoutError as error:
            raise SourceError(f"{error} (timed out after {self.timeout:g} seconds)") from None
        except EndpointError as error:
            raise SourceError(str(error)) from None
