"""What is asked of an engine, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .constraint import Constraint
from .sampling import Sampling


@dataclass
class Generation:
    """What was generated for one prompt."""

    ids: np.ndarray
    """int32 [n], without the prompt, with the stop token if one ended it."""
    logprobs: np.ndarray
    """float32 [n]: the log probability, in nats at temperature 1, of each token; NaN where it was supplied."""
    supplied: np.ndarray
    """bool [n]: tokens that came from `on_token`, not from the model."""
    finish_reason: str
    """"stop" (a stop token), "length", "constraint" (which allowed no token) or "cancelled"."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it."""

    prompt: Sequence[int] | np.ndarray | str
    """Tokens, or a text where the engine has a tokenizer."""
    max_new_tokens: int
    """The sequence ends with reason "length" after so many, or at the engine's `max_length`."""
    stop_ids: Iterable[int] | None = None
    """Tokens that end it; None: the model's own."""
    temperature: float = 0.0
    """0 takes the most likely token; otherwise logits are divided by it, and tokens drawn."""
    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens whose probability reaches this."""
    top_k: int = 0
    """Draw from so many most likely tokens; 0: from all."""
    seed: int | Sequence[int] = 0
    """What is drawn depends on this and the number of tokens after the prompt, whatever else runs."""
    top_logprobs: int = 0
    """How many most likely tokens to report with each token."""
    constraint: Constraint | None = None
    """Which tokens may come; log probabilities remain those of the model without it."""
    on_token: Callable[[list[int]], list[int] | None] | None = None
    """Called after each token the model chose, but a last one, with all after the prompt so far; what it returns is
    appended as if the model had chosen it."""


@dataclass(eq=False)
class Handle:
    """A request on its way: what it was, and what came of it so far."""

    request: Request
    prompt: np.ndarray
    """int32 [n]: the prompt's tokens."""
    limit: int
    sampling: Sampling
    stop_ids: frozenset[int]
    uniforms: np.ndarray
    """One random number in [0, 1) for each token to draw; empty at temperature 0."""
    pending: list[int]
    """Tokens that the cache does not hold yet."""
    ids: list[int] = field(default_factory=list)
    """Tokens after the prompt."""
    logprobs: list[float] = field(default_factory=list)
    """See `Generation`."""
    supplied: list[bool] = field(default_factory=list)
    """See `Generation`."""
    finish_reason: str | None = None
    """None while it runs; see `Generation`."""
    reused: int = 0
    """How many tokens of the prompt were copied from another sequence's cache."""

    @property
    def tokens(self) -> np.ndarray:
        """int32 [n]: the prompt and all after it."""
        return np.concatenate([self.prompt, np.array(self.ids, np.int32)])

    def generation(self) -> Generation:
        """What was generated so far."""
        return Generation(
            np.array(self.ids, np.int32),
            np.array(self.logprobs, np.float32),
            np.array(self.supplied, bool),
            self.finish_reason or "",
        )


@dataclass(frozen=True)
class Event:
    """A token that a step appended to a sequence, or its end without one."""

    handle: Handle
    token: int | None
    """None where the constraint allowed no token."""
    logprob: float
    """In nats, at temperature 1 and without the constraint; NaN where the token was supplied, or is None."""
    supplied: bool
    top: list[tuple[int, float]]
    """The `top_logprobs` most likely tokens and their log probabilities, falling; empty where it was supplied."""
    finish_reason: str | None
    """Set on a sequence's last event."""
