"""Choosing tokens from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How one sequence's tokens are chosen. Raises ValueError where a value is out of range."""

    temperature: float = 0.0
    """0: the most likely token; otherwise what logits are divided by."""
    top_p: float = 1.0
    """Only of the smallest set of most likely tokens whose probability reaches this share of what `top_k` leaves."""
    top_k: int = 0
    """Only of so many most likely tokens; 0: of all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "need temperature >= 0, 0 < top_p <= 1 and top_k >= 0, "
                f"got {self.temperature}, {self.top_p} and {self.top_k}"
            )


def choose(logits: Tensor, settings: list[Sampling], uniforms: list[float]) -> Tensor:
    """A token for each row of `logits`, float32 [n, vocab]; int64 [n].

    A row depends on its own logits, settings and `uniforms`, in [0, 1), alone.
    """
    tokens = logits.argmax(-1)
    rows = [i for i, setting in enumerate(settings) if setting.temperature]
    if not rows:
        return tokens
    some = len(rows) < len(settings)
    chosen = draw(
        logits[rows] if some else logits, [settings[i] for i in rows], [uniforms[i] for i in rows] if some else uniforms
    )
    if not some:
        return chosen
    tokens[rows] = chosen
    return tokens


def draw(logits: Tensor, settings: list[Sampling], uniforms: list[float]) -> Tensor:
    """As `choose`, of rows that all have a temperature: by the inverse of the distribution function, sorted."""
    vocab = logits.shape[1]
    table = [(s.temperature, s.top_p, s.top_k or vocab, u) for s, u in zip(settings, uniforms, strict=True)]
    columns = torch.tensor(table, dtype=torch.float64).to(logits.device).split(1, 1)
    temperature, top_p, top_k, uniform = columns
    # From the largest, which a temperature near 0 would otherwise make infinite.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.float()
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.double().cumsum(-1)
    top_k = top_k.long().clamp(max=vocab)
    # A token belongs to the set while the probability before it has not reached top_p (of what top_k leaves).
    reach = top_p * cumulative.gather(1, top_k - 1).where(top_k < vocab, 1.0)
    kept = (cumulative - probabilities < reach).sum(-1, keepdim=True).clamp(min=1).minimum(top_k)
    # What constraints forbid has no probability, and is never drawn.
    kept = kept.minimum((probabilities > 0).sum(-1, keepdim=True).clamp(min=1))
    drawn = uniform * cumulative.gather(1, kept - 1)
    rank = torch.searchsorted(cumulative, drawn, right=True).minimum(kept - 1)
    return order.gather(1, rank)[:, 0]
