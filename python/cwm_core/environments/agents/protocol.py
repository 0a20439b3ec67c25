"""Define the interface between agents and rollouts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from ..._native import CwmError
from ..tasks import Task

Message = dict[str, str]
"""`role` (`system`, `user`, `assistant` or `tool: NAME`) and `content`, as `Tokenizer.encode_chat` takes them."""


class EndReason(StrEnum):
    """The reason that a rollout ended."""

    DONE = "done"
    """A message without a tool call."""
    TURNS = "turns"
    """`Budget.turns`."""
    SECONDS = "seconds"
    """`Budget.seconds`."""
    CONTEXT_TOKENS = "context tokens"
    """`Budget.context_tokens`."""
    ACTION_TOKENS = "action tokens"
    """`Budget.action_tokens`."""
    PROMPT_TOKENS = "prompt tokens"
    """`Budget.prompt_tokens`."""
    SCRIPT = "script"
    """The end of a script."""
    MALFORMED = "malformed"
    """A malformed action, in an environment that such an action ends."""
    FAILED = "failed"
    """An error of the agent or the machine."""


class ReplyEnd(StrEnum):
    """The reason that a reply ended."""

    STOP = "stop"
    """The agent ended it."""
    LENGTH = "length"
    """A limit cut it."""


@dataclass(frozen=True)
class Reply:
    """A reply of an agent."""

    text: str
    """Message of the agent."""
    finish: ReplyEnd = ReplyEnd.STOP
    """Reason of the text's end. A text that a limit cut does not go to the environment."""
    ids: tuple[int, ...] | None = None
    """Generated tokens, including the one that ended the reply; None if they are unknown."""
    logprobs: tuple[float | None, ...] | None = None
    """Log probability of each of `ids`, in nats at temperature 1."""
    tokens: int | None = None
    """Number of generated tokens."""
    prompt_tokens: int | None = None
    """Number of tokens of the conversation before the reply."""
    cached_tokens: int | None = None
    """Number of those tokens that came from a cache."""


Generate = Callable[[Sequence[Message]], Reply | str]
"""Returns the reply to a conversation. Each call of a rollout gets the conversation of the last call, extended by the
reply as the assistant's message and by the observation."""


class OutOfBudget(CwmError):
    """The agent cannot reply, because a budget is exhausted or its script has ended.

    Attributes:
        end: Reason of the rollout's end.
    """

    def __init__(self, end: EndReason | str) -> None:
        """Set the reason. Raise ValueError if it is not the value of an `EndReason`."""
        self.end = EndReason(end)
        super().__init__(str(self.end))


@dataclass(frozen=True)
class Budget:
    """Limits of a rollout. The defaults are those of the Code World Model (arXiv 2510.02387)."""

    turns: int = 128
    """Maximum number of turns."""
    seconds: float = 2400.0
    """Maximum wall-clock time of the rollout in seconds, including the agent's."""
    command_seconds: float = 120.0
    """Time limit of each command of the agent and of the reward, in seconds."""
    context_tokens: int = 131_072
    """Maximum number of tokens in the conversation."""
    action_tokens: int = 65_536
    """Maximum number of tokens in a reply."""
    prompt_tokens: int = 8192
    """Maximum number of tokens in the system message and the first user message."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that is not positive."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"a budget's {name} must be positive, got {value}")


class Agent(Protocol):
    """Makes a function that replies for each rollout. Several rollouts run at a time, each in a thread."""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that replies depend on, in JSON types and without secrets. Trajectories record them."""
        ...

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """Start a rollout and return the function that replies.

        Replies depend only on the settings, the conversation, and `seed`. The function raises `OutOfBudget` when it
        reaches a limit. Any other exception fails this rollout but no other.
        """
        ...

    def interrupt(self) -> None:
        """Make running replies raise soon, if possible. Any thread may call this."""
        ...
