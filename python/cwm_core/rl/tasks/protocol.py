"""The interface between tasks and the loop that trains on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...machines import literals_equal


@dataclass(frozen=True)
class Reward:
    """The reward of a trajectory, with reasons. The rewards of the built-in tasks are from -1 to 1."""

    value: float
    """Return of the trajectory: the sum of all its rewards, including those in `token_values`."""
    reasons: tuple[str, ...]
    """Short reasons, such as "right" or "frame 3: wrong line". Messages for logs and metrics."""
    solved: bool
    """True if the trajectory solves the item. Solve rates count these."""
    token_values: tuple[tuple[int, int, float], ...] = ()
    """Step rewards as (begin, end, value): the part of `value` that the tokens from `begin` to `end` (exclusive) earned
    together. Positions count the action tokens of the trajectory, over all turns. The rest of `value` belongs to the
    trajectory as a whole."""


class Episode(Protocol):
    """One trajectory on one item. Use it from one thread at a time."""

    @property
    def prompt(self) -> list[int]:
        """Return the token ids before the first action."""
        ...

    def step(self, tokens: Sequence[int], /) -> list[int] | Reward:
        """Carry out an action.

        Args:
            tokens: The tokens that the model generated, including the stop token. Tokens that do not end with a stop
                token are an action that a limit cut, which is not carried out and ends the episode. So the caller can
                end an episode with an empty action.

        Returns:
            The observation's token ids, which the caller appends before the model acts again, or the reward, which ends
            the episode.

        Raises:
            Exception: The machine failed, rather than the model. The trajectory has no reward: drop it.
        """
        ...

    def close(self) -> None:
        """Release the machine. Closing again has no effect."""
        ...


class Task(Protocol):
    """Members that every kind of task has."""

    @property
    def name(self) -> str:
        """Name in metrics."""
        ...

    @property
    def stop_tokens(self) -> frozenset[int]:
        """Token ids that end an action."""
        ...

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of an action."""
        ...


class RLTask(Task, Protocol):
    """A task of a single turn. Methods may be called from several threads at a time."""

    def prompt(self, item: Any, /) -> list[int]:
        """Return the token ids of the prompt of an item."""
        ...

    def score(self, item: Any, tokens: Sequence[int], /) -> Reward:
        """Return the reward of the generated tokens, which include the stop token if there is one.

        Hostile or malformed tokens get a low reward and do not raise.

        Raises:
            Exception: The machine failed, rather than the model. The trajectory has no reward: drop it.
        """
        ...


class EpisodeTask(Task, Protocol):
    """A task of several turns. `start` may be called from several threads at a time."""

    def start(self, item: Any, /) -> Episode:
        """Start an episode on an item.

        Raises:
            Exception: The machine failed. No trajectory exists.
        """
        ...


@dataclass
class SingleTurn:
    """An episode of one action on an item of an `RLTask`."""

    task: RLTask
    """The task."""
    item: Any
    """The item."""

    @property
    def prompt(self) -> list[int]:
        """See `Episode.prompt`."""
        return self.task.prompt(self.item)

    def step(self, tokens: Sequence[int], /) -> Reward:
        """Score the tokens; see `Episode.step`."""
        return self.task.score(self.item, tokens)

    def close(self) -> None:
        """See `Episode.close`."""


def start_episode(task: RLTask | EpisodeTask, item: Any) -> Episode:
    """Start an episode of a task of either kind."""
    start = getattr(task, "start", None)
    if start is None:
        return SingleTurn(task, item)  # type: ignore[arg-type]  # a task without `start` is of a single turn
    episode: Episode = start(item)
    return episode


def outcome(solved: bool, *reasons: str) -> Reward:
    """Return the published reward of an outcome: 1 if it is solved, else -1 (arXiv 2510.02387, section 5.2)."""
    return Reward(1.0 if solved else -1.0, reasons, solved)


def is_value(answer: str, truth: str) -> bool:
    """Return whether an answer is the literal of a value; see `literals_equal`.

    An answer that is much longer than the truth is another value, or is written to make the comparison slow.
    """
    return len(answer) <= 1000 + 10 * len(truth) and literals_equal(truth, answer)
