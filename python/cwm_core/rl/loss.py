"""One loss for all algorithms: clipped importance ratios times the weights of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import Objective
from ..support.arguments import convert_fields
from ..training import World


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss: the table `[loss]`. The defaults are published (arXiv 2510.02387).

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    clip_low: float = 0.2
    """A token of negative weight has no gradient while its ratio is below 1 - `clip_low`."""
    clip_high: float = 0.25
    """A token of positive weight has no gradient while its ratio is above 1 + `clip_high`."""
    truncate: float = 0.0
    """Largest ratio; if positive, it replaces both clips: the gradient is that of -w min(r, `truncate`) log p with a
    constant ratio r (truncated importance sampling: IMPALA, arXiv 1802.01561; AIPO, arXiv 2505.24034)."""

    def __post_init__(self) -> None:
        """Check the values."""
        convert_fields(self)
        if not 0 <= self.clip_low <= 1:
            raise ValueError(f"clip_low must be between 0 and 1, got {self.clip_low}")
        if not self.clip_high >= 0:
            raise ValueError(f"clip_high must not be negative, got {self.clip_high}")
        if self.truncate and not self.truncate >= 1:
            raise ValueError(f"truncate must be 0 or at least 1, got {self.truncate}")


class PolicyLoss:
    """The sum over tokens of -min(r w, clip(r, 1 - low, 1 + high) w), or of -w log p for tokens that are no actions.

    w is the weight of the token, and r = p / behavior the ratio of its probability to that at the time of its choice.
    There is no KL term. A batch has, in the shape of its tokens:

    - `weights`: weight of each target, float32.
    - `behavior`: behavior log probability of each target, float32; NaN if it is no action.
    - `fresh`: whether the log probability is of the present weights, bool: only these tell how far the engine and the
      trainer agree.
    """

    def __init__(self, config: LossConfig, device: torch.device) -> None:
        """Count on `device`."""
        self.config = config
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(len(_SUMS), dtype=self._dtype, device=device)
        self._largest = torch.zeros((), device=device)

    def of(self, batch: Any) -> Objective:
        """Return the loss of the tokens of a batch; see `Objective`."""
        weights, behavior, fresh = (t.flatten() for t in (batch.weights, batch.behavior, batch.fresh))

        def objective(losses: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
            weight, known, now = (t.index_select(0, positions) for t in (weights, behavior, fresh))
            return self._loss(losses, weight, known, now)

        return objective

    def _loss(self, losses: Tensor, weight: Tensor, behavior: Tensor, fresh: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of each token and its derivative by the negative log likelihood; all [n]."""
        is_action = ~behavior.isnan()
        difference = torch.where(is_action, -losses - behavior, 0.0)
        ratio = difference.exp()
        low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
        if self.config.truncate:
            beyond = ratio > self.config.truncate
            slope = weight * ratio.clamp(max=self.config.truncate)
            loss = slope * losses
            shares = [torch.zeros_like(beyond), beyond]
        else:
            shares = [(ratio < low) & (weight < 0), (ratio > high) & (weight > 0)]
            slope = torch.where(shares[0] | shares[1], 0.0, weight * ratio)
            loss = -torch.minimum(weight * ratio, weight * ratio.clamp(low, high))
            loss = torch.where(is_action, loss, weight * losses)
        self._count(is_action, difference, ratio, shares, is_action & fresh)
        return loss, slope

    def _count(self, is_action: Tensor, difference: Tensor, ratio: Tensor, shares: list[Tensor], fresh: Tensor) -> None:
        now = difference.where(fresh, 0.0)
        kl = torch.expm1(now) - now  # r - 1 - log r, whose mean over samples estimates KL (joschu.net/blog/kl-approx)
        rows = [is_action, ratio.where(is_action, 0.0), *(share & is_action for share in shares), fresh, now.abs(), kl]
        self._sums += torch.stack([row.sum(dtype=self._dtype) for row in rows])
        if len(now):
            self._largest = torch.maximum(self._largest, now.abs().max())

    def metrics(self, world: World) -> dict[str, float]:
        """Return metrics of all tokens since the last call, over all ranks; those of no tokens are left out."""
        sums = dict(zip(_SUMS, world.sum(self._sums).tolist(), strict=True))
        (largest,) = world.max([self._largest.item()])
        self._sums.zero_()
        self._largest.zero_()
        metrics = {"loss/actions": sums["actions"]}
        if actions := sums["actions"]:
            metrics |= {f"loss/{name}": sums[name] / actions for name in ("ratio", "clipped_low", "clipped_high")}
        if fresh := sums["fresh"]:
            metrics |= {
                "engine/compared": fresh,
                "engine/mean_difference": sums["difference"] / fresh,
                "engine/largest_difference": largest,
                "engine/kl": sums["kl"] / fresh,
            }
        return metrics


_SUMS = ("actions", "ratio", "clipped_low", "clipped_high", "fresh", "difference", "kl")
