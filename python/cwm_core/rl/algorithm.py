"""Assign a weight to each token of a group of rollouts: advantage, baseline, and normalization.

The trainer knows only the weights. A token of weight w adds -w log p(token) to the loss, with the importance ratio of
`PolicyLoss` if it is an action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..support.arguments import convert_fields
from .records import Rollout

Weights = NDArray[np.float64]

CHOICES = {
    "baseline": ("length", "mean"),
    "credit": ("return", "steps"),
    "normalize": ("constant", "sequence", "batch"),
}


@dataclass(frozen=True)
class Algorithm:
    """Credit of tokens: the table `[algorithm]`. The defaults are the published algorithm (arXiv 2510.02387).

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    max_length: int
    """Constant that divides the sum over the tokens of a rollout: the largest number of tokens of a rollout."""
    baseline: str = "length"
    """Baseline that is subtracted from a return: "length", the mean of the group weighted by length (CWM; OPO, arXiv
    2505.23585), or "mean", the plain mean (GRPO, arXiv 2402.03300)."""
    deviation: bool = False
    """Divide by the standard deviation of the group (GRPO, arXiv 2402.03300)."""
    normalize: str = "constant"
    """Divisor of the sum over tokens: "constant", `max_length` (CWM; Dr. GRPO, arXiv 2503.20783); "sequence", the
    length of the rollout (GRPO, arXiv 2402.03300); or "batch", the actions of the step instead of its rollouts (DAPO,
    arXiv 2503.14476)."""
    credit: str = "return"
    """Reward that a token is credited with: "return", the return of its rollout (CWM), or "steps", its step reward
    (`Reward.token_values`) relative to the mean of all steps of the group, and the rest of the return (process
    supervision of GRPO, arXiv 2402.03300)."""
    step_discount: float = 0.0
    """Discount of later step rewards: 0 credits only the tokens of a step, 1 also all tokens before it (as in arXiv
    2402.03300)."""
    observation_weight: float = 0.0
    """Factor of an auxiliary cross entropy of observations (ECHO, arXiv 2605.24517, with 0.05)."""
    length_penalty: float = 0.0
    """Amount subtracted from the return of a rollout of `max_length` actions, and a share of it from shorter ones. The
    report names a penalty without a formula; this one is ours."""

    def __post_init__(self) -> None:
        """Check the values."""
        convert_fields(self)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("observation_weight", "length_penalty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be positive, got {self.max_length}")
        if not 0 <= self.step_discount <= 1:
            raise ValueError(f"step_discount must be between 0 and 1, got {self.step_discount}")

    def advantages(self, group: Sequence[Rollout]) -> list[Weights]:
        """Return the advantage of each token of each rollout of a group, float64 [n]; 0 outside the actions.

        Every rollout must have an action.

        Raises:
            ValueError: A step reward is outside the actions.
        """
        lengths = np.array([rollout.length for rollout in group], np.float64)
        returns = np.array([self._return(rollout) for rollout in group])
        share = lengths if self.baseline == "length" else np.ones(len(group))
        # Equal returns have no advantage. Rounding, which a deviation near 0 would magnify, must not give them one.
        of_rollout = np.zeros(len(group)) if _are_equal(returns) else returns - (share @ returns) / share.sum()
        if self.deviation and of_rollout.any():
            of_rollout /= returns.std()
        values = [value for rollout in group for _, _, value in rollout.reward.token_values]
        # As above, equal steps have no advantage.
        mean = float(np.mean(values)) if self.credit == "steps" and not _are_equal(values) else None
        advantages = []
        for rollout, advantage in zip(group, of_rollout, strict=True):
            advantages.append(np.zeros(len(rollout.tokens)))
            advantages[-1][rollout.actions] = advantage + (0.0 if mean is None else self._of_steps(rollout, mean))
        return advantages

    def _return(self, rollout: Rollout) -> float:
        """Return the reward that all tokens of a rollout share."""
        steps = sum(value for _, _, value in rollout.reward.token_values) if self.credit == "steps" else 0.0
        return rollout.reward.value - steps - self.length_penalty * rollout.length / self.max_length

    def _of_steps(self, rollout: Rollout, mean: float) -> Weights:
        """Return the step rewards of each action and the discounted later ones, each relative to `mean`."""
        credit = np.zeros(rollout.length)
        steps = sorted(rollout.reward.token_values)
        later = np.zeros(len(steps) + 1)
        for number, (begin, end, value) in reversed(list(enumerate(steps))):
            if not 0 <= begin <= end <= rollout.length:
                raise ValueError(
                    f"rollout {rollout.name}: the step reward of actions {begin} to {end} is outside the "
                    f"{rollout.length} actions"
                )
            credit[begin:end] += value - mean
            later[number] = value - mean + self.step_discount * later[number + 1]
        following = np.searchsorted([begin for begin, *_ in steps], np.arange(rollout.length), side="right")
        return credit + self.step_discount * later[following]

    def weights(self, rollouts: Sequence[Rollout], advantages: Sequence[Weights]) -> list[Weights]:
        """Return the weight of each token in the loss of a step of these rollouts, float64 [n] each.

        Args:
            rollouts: All rollouts of the step, of all ranks.
            advantages: Their results of `advantages`.
        """
        total = sum(rollout.length for rollout in rollouts)
        result = []
        for rollout, advantage in zip(rollouts, advantages, strict=True):
            divisors = {"constant": self.max_length, "sequence": rollout.length, "batch": total / len(rollouts)}
            weights = advantage / divisors[self.normalize]
            observations = ~rollout.actions
            observations[: rollout.prompt] = False
            if self.observation_weight and observations.any():
                weights[observations] = self.observation_weight / observations.sum()
            result.append(weights / len(rollouts))
        return result


def _are_equal(values: Sequence[float] | Weights) -> bool:
    """Return whether values are the same but for rounding."""
    return not len(values) or bool(np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()))
