"""Choose tokens from logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of one sequence.

    Raises:
        ValueError: A value is out of range.
    """

    temperature: float = 0.0
    """Divisor of the logits; 0 takes the most likely token."""
    top_p: float = 1.0
    """Share of the probability left by `top_k` that the smallest set of most likely tokens must reach."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0 means all."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ValueError(
                "expected temperature >= 0, 0 < top_p <= 1 and top_k >= 0, "
                f"got {self.temperature}, {self.top_p} and {self.top_k}"
            )


def choose(logits: Tensor, settings: list[Sampling], uniforms: list[float]) -> Tensor:
    """Return a token for each row of `logits`, int64 [n].

    Args:
        logits: Logits, float32 [n, vocab].
        settings: Settings of each row. A row's token depends only on its own logits, settings and random number.
        uniforms: A random number in [0, 1) for each row.
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
    """Return a sampled token for each row, int64 [n], by inverting the cumulative distribution of the sorted tokens.

    Takes the arguments of `choose`; every row needs a temperature above 0.
    """
    vocab = logits.shape[1]
    table = [(s.temperature, s.top_p, s.top_k or vocab, u) for s, u in zip(settings, uniforms, strict=True)]
    temperature, top_p, top_k, uniform = torch.tensor(table, dtype=torch.float64).to(logits.device).tensor_split(4, 1)
    # Relative to the largest logit, which a temperature near 0 would make infinite.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature.float()
    probabilities, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    cumulative = probabilities.double().cumsum(-1)
    top_k = top_k.long().clamp(max=vocab)
    # A token belongs to the set while the probability before it has not reached top_p of the share left by top_k.
    reach = top_p * cumulative.gather(1, top_k - 1).where(top_k < vocab, 1.0)
    kept = (cumulative - probabilities < reach).sum(-1, keepdim=True).clamp(min=1).minimum(top_k)
    # Tokens that a constraint forbids have probability 0 and are never drawn.
    kept = kept.minimum((probabilities > 0).sum(-1, keepdim=True).clamp(min=1))
    drawn = uniform * cumulative.gather(1, kept - 1)
    rank = torch.searchsorted(cumulative, drawn, right=True).minimum(kept - 1)
    return order.gather(1, rank)[:, 0]
