"""Requests to an engine, and their results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from .constraint import Constraint
from .sampling import Sampling


class FinishReason(StrEnum):
    """The reason that a sequence ended."""

    STOP = "stop"
    """A stop token."""
    LENGTH = "length"
    """The limit of new tokens, or the engine's `max_length`."""
    CONSTRAINT = "constraint"
    """The constraint allowed no token."""
    CANCELLED = "cancelled"
    """`Engine.cancel`, or an error in a callback."""


@dataclass
class Generation:
    """The continuation of one prompt."""

    ids: np.ndarray
    """Tokens after the prompt, int32 [n], including the stop token that ended the sequence."""
    logprobs: np.ndarray
    """Log probability of each token in nats at temperature 1, float32 [n]; NaN for supplied tokens."""
    supplied: np.ndarray
    """Tokens that `on_token` supplied instead of the model, bool [n]."""
    finish_reason: FinishReason | None
    """Reason of the end; None while the sequence runs."""


@dataclass(frozen=True)
class Request:
    """A prompt, and how to continue it."""

    prompt: Sequence[int] | np.ndarray | str
    """Token ids, or text if the engine has a tokenizer."""
    max_new_tokens: int
    """Maximum number of new tokens; the engine's `max_length` applies too."""
    stop_ids: Iterable[int] | None = None
    """Tokens that end the sequence; None uses `Engine.stop_tokens`."""
    temperature: float = 0.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Nucleus sampling threshold."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0 means all."""
    seed: int | Sequence[int] = 0
    """Seed of the samples, which depend only on it and on the number of tokens after the prompt."""
    top_logprobs: int = 0
    """Number of most likely tokens to report with each token."""
    constraint: Constraint | None = None
    """Constraint on the tokens; reported log probabilities ignore it."""
    on_token: Callable[[list[int]], list[int] | None] | None = None
    """Callback with all tokens after the prompt, called after each token of the model except the last; the tokens that
    it returns are appended as if the model had chosen them."""


@dataclass(eq=False)
class Handle:
    """A submitted request and its state."""

    request: Request
    prompt: np.ndarray
    """Tokens of the prompt, int32 [n]."""
    limit: int
    """Maximum number of new tokens, within the engine's `max_length`."""
    sampling: Sampling
    stop_ids: frozenset[int]
    uniforms: np.ndarray
    """One random number in [0, 1) for each new token; empty at temperature 0."""
    pending: list[int]
    """Tokens that are not in the cache yet."""
    ids: list[int] = field(default_factory=list)
    """Tokens after the prompt."""
    logprobs: list[float] = field(default_factory=list)
    """Log probability of each token in nats; see `Generation`."""
    supplied: list[bool] = field(default_factory=list)
    """Flags of supplied tokens; see `Generation`."""
    finish_reason: FinishReason | None = None
    """Reason of the end; None while the sequence runs or waits."""
    reused: int = 0
    """Number of prompt tokens copied from the cache of another sequence."""

    @property
    def tokens(self) -> np.ndarray:
        """Return the prompt and the tokens after it, int32 [n]."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int32)])

    def generation(self) -> Generation:
        """Return the tokens generated so far."""
        return Generation(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.supplied, bool),
            self.finish_reason,
        )


@dataclass(frozen=True)
class Event:
    """A token that a step appended to a sequence, or the end of a sequence without a token."""

    handle: Handle
    token: int | None
    """Token id; None if the constraint allowed no token."""
    logprob: float
    """Log probability in nats, at temperature 1 and without the constraint; NaN if `supplied` or without a token."""
    supplied: bool
    """True if `on_token` supplied the token."""
    top: list[tuple[int, float]]
    """The `top_logprobs` most likely tokens with their log probabilities, most likely first; empty if `supplied`."""
    finish_reason: FinishReason | None
    """Reason of the end, on the last event of a sequence."""
