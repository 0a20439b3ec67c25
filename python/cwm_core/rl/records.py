"""Rollouts: what was generated for a prompt, by which policy, and its reward."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .tasks import Reward


@dataclass(frozen=True, eq=False)
class Rollout:
    """One answer to a prompt: actions of the policy, and observations between them if there are several turns.

    Raises:
        ValueError: The arrays contradict each other.
    """

    task: str
    """Name of the task."""
    group: int
    """Number of the prompt in the run. The rollouts of one prompt are a group."""
    sample: int
    """Number of the rollout in its group."""
    tokens: NDArray[np.int32]
    """Token ids of prompt, actions and observations, int32 [n]."""
    actions: NDArray[np.bool_]
    """Tokens that the policy chose, bool [n]."""
    logprobs: NDArray[np.float32]
    """Behavior log probability: that of each action under the policy that chose it, in nats, float32 [n]; NaN for other
    tokens."""
    versions: NDArray[np.int32]
    """Version of the policy that chose each action, its number of optimizer steps, int32 [n]; -1 for other tokens."""
    prompt: int
    """Number of tokens of the prompt."""
    reward: Reward
    """Reward of the task."""

    def __post_init__(self) -> None:
        """Check the arrays."""
        shapes = {array.shape for array in (self.tokens, self.actions, self.logprobs, self.versions)}
        if len(shapes) != 1 or len(self.tokens.shape) != 1:
            raise ValueError(f"rollout {self.name}: expected four arrays of one length, got shapes {shapes}")
        if not 0 < self.prompt <= len(self.tokens) or self.actions[: self.prompt].any():
            raise ValueError(f"rollout {self.name}: expected a prompt of {self.prompt} tokens without actions")
        if not np.array_equal(self.actions, self.versions >= 0):
            raise ValueError(f"rollout {self.name}: expected a policy version of each action, and of nothing else")
        if not np.isfinite(self.logprobs[self.actions]).all():
            raise ValueError(f"rollout {self.name}: a behavior log probability is not finite")

    @property
    def name(self) -> str:
        """Return a name that is unique in a run."""
        return f"{self.task} {self.group}/{self.sample}"

    @property
    def length(self) -> int:
        """Return the number of actions."""
        return int(self.actions.sum())

    @property
    def newest(self) -> int:
        """Return the version of the policy that chose the newest action; -1 without actions."""
        return int(self.versions.max())

    @property
    def oldest(self) -> int:
        """Return the version of the policy that chose the oldest action; -1 without actions."""
        return int(self.versions[self.actions].min(initial=self.newest))

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON keeps exactly."""
        arrays = {name: getattr(self, name).tolist() for name in ("tokens", "versions")}
        # Other tokens have NaN, which JSON has not. float32 values survive as float64.
        logprobs = self.logprobs[self.actions].tolist()
        plain = {name: getattr(self, name) for name in ("task", "group", "sample", "prompt")}
        return plain | arrays | {"logprobs": logprobs, "reward": asdict(self.reward)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the rollout of `to_dict`."""
        versions = np.array(values["versions"], np.int32)
        logprobs = np.full(len(versions), np.nan, np.float32)
        logprobs[versions >= 0] = values["logprobs"]
        reward = values["reward"]
        spans = tuple((begin, end, value) for begin, end, value in reward["token_values"])
        reward = Reward(**reward | {"reasons": tuple(reward["reasons"]), "token_values": spans})
        arrays = {"tokens": np.array(values["tokens"], np.int32), "actions": versions >= 0}
        return cls(**values | arrays | {"versions": versions, "logprobs": logprobs, "reward": reward})
