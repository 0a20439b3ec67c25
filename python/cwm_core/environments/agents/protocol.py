"""What a rollout needs of an agent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..tasks import Task

Message = dict[str, str]
"""`role` (`system`, `user`, `assistant` or `tool: NAME`) and `content`, as `Tokenizer.encode_chat` takes them."""


@dataclass(frozen=True)
class Reply:
    """What an agent says next."""

    text: str
    finish: str = "stop"
    """"length" where a limit cut it; the environment is not given such a text."""
    ids: tuple[int, ...] | None = None
    """The tokens that the model generated, the one that ended the reply included; None where they are not known."""
    logprobs: tuple[float | None, ...] | None = None
    """The log probability, in nats at temperature 1, of each of `ids`."""
    tokens: int | None = None
    """How many tokens were generated."""
    prompt_tokens: int | None = None
    """How many tokens the conversation had before."""
    cached_tokens: int | None = None
    """How many of those did not have to be read again."""


Generate = Callable[[Sequence[Message]], Reply | str]
"""From the conversation so far to what comes next. Called with ever longer conversations of one rollout: those before,
the text that was replied as the assistant's message, and the observation."""


class OutOfBudget(Exception):
    """The agent can say no more; its text says which part of the budget is spent, or that the script has ended."""


@dataclass(frozen=True)
class Budget:
    """What a rollout may use. The defaults are those of the Code World Model report's software engineering."""

    turns: int = 128
    seconds: float = 2400.0
    """Of the episode, wall clock, the agent's thinking included."""
    command_seconds: float = 120.0
    """Of each command, and of each of the reward's."""
    context_tokens: int = 131_072
    """Of the whole conversation."""
    action_tokens: int = 65_536
    """Of a reply."""
    prompt_tokens: int = 8192
    """Of the system's and the first user's message."""

    def __post_init__(self) -> None:
        """Raise ValueError for a part that is not positive."""
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"a budget's {name} must be positive, not {value}")


class Agent(Protocol):
    """Makes, for each rollout, the callable that replies. Rollouts run in threads, several at a time."""

    @property
    def settings(self) -> dict[str, Any]:
        """What its replies depend on, as JSON has it; recorded with every trajectory. No secrets."""
        ...

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """Begin a rollout. Its replies depend on the settings, the conversation and `seed`.

        The callable raises `OutOfBudget` when a limit of tokens or time is reached; another exception fails the
        rollout, and no other one.
        """
        ...

    def interrupt(self) -> None:
        """Let the callables that are at work now raise soon, as far as that is possible. From any thread."""
        ...
