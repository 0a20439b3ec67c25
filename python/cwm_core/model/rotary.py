"""Rotary positions: parameters in the layout of Hugging Face, frequencies of each kind, and the rotation itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..support.arguments import check_positive, convert_fields

if TYPE_CHECKING:
    from .config import ModelConfig

USED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "truncate",
    ),
}  # fmt: skip
"""Parameters of each kind of scaling beside `rope_theta`."""


@dataclass(frozen=True)
class RopeParameters:
    """Rotary positions and their scaling to longer contexts: `rope_parameters` of Hugging Face.

    Kinds of scaling, as `rope_type`:

    - "default": none.
    - "linear": all wavelengths are multiplied by `factor` (arXiv 2306.15595).
    - "llama3": wavelengths shorter than `original_max_position_embeddings / high_freq_factor` tokens stay, wavelengths
      longer than `original_max_position_embeddings / low_freq_factor` are multiplied by `factor`, and those between are
      interpolated (arXiv 2407.21783).
    - "yarn": wavelengths with more than `beta_fast` turns within the original context stay, those with fewer than
      `beta_slow` are multiplied by `factor`, with a linear ramp over the dimensions between. Queries and keys are
      multiplied by `attention_factor` (arXiv 2309.00071).

    Parameters that a kind does not use get their defaults, and `factor` gets 1.

    Raises:
        ValueError: The kind is unknown, a number is not positive or not finite, or `low_freq_factor` is not below
            `high_freq_factor`.
    """

    rope_theta: float = 1_000_000.0
    """Base of the wavelengths."""
    rope_type: str = "llama3"
    """Kind of scaling: "default", "linear", "llama3" or "yarn"."""
    factor: float = 16.0
    """Factor by which long wavelengths are stretched; 1 disables scaling."""
    low_freq_factor: float = 1.0
    """Turns within the original context below which "llama3" fully stretches a wavelength."""
    high_freq_factor: float = 4.0
    """Turns within the original context above which "llama3" keeps a wavelength."""
    original_max_position_embeddings: int = 8192
    """Context length in tokens before stretching, for "llama3" and "yarn"."""
    beta_fast: float = 32.0
    """Turns within the original context above which "yarn" keeps a wavelength."""
    beta_slow: float = 1.0
    """Turns within the original context below which "yarn" fully stretches a wavelength."""
    truncate: bool = True
    """Whether "yarn" rounds the ends of its ramp to whole dimensions."""
    attention_factor: float | None = None
    """Factor of queries and keys with "yarn"; None: 0.1 ln(factor) + 1."""

    def __post_init__(self) -> None:
        """Check the values, and reset those that the kind does not use."""
        convert_fields(self)
        if self.rope_type not in USED:
            raise ValueError(f"rope_type must be one of {', '.join(USED)}, got {self.rope_type!r}")
        for parameter in fields(self):
            value = getattr(self, parameter.name)
            if parameter.name not in ("rope_type", "truncate") and value is not None:
                check_positive(f"rope_parameters.{parameter.name}", value)
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(
                f"rope_parameters.low_freq_factor ({self.low_freq_factor}) must be below "
                f"rope_parameters.high_freq_factor ({self.high_freq_factor})"
            )
        for parameter in fields(self)[2:]:
            if parameter.name not in USED[self.rope_type]:
                unused = 1.0 if parameter.name == "factor" else parameter.default
                object.__setattr__(self, parameter.name, unused)

    @classmethod
    def from_hf(cls, config: dict[str, Any], default_theta: float) -> RopeParameters:
        """Return the parameters in the dictionary of a `config.json`, with the defaults of transformers.

        Raises:
            KeyError: A parameter is missing.
            ValueError: The scaling is of a kind that this package does not compute.
        """
        # Before version 5, transformers wrote rope_theta and rope_scaling as separate keys.
        rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError("config.json has rope_parameters for each kind of layer, expected one for all")
        if kind not in USED:
            raise ValueError(f"config.json has rope_type {kind!r}, expected one of {', '.join(USED)}")
        values = {"rope_type": kind, "rope_theta": rope.get("rope_theta") or config.get("rope_theta") or default_theta}
        length = config["max_position_embeddings"]
        if config.get("original_max_position_embeddings"):
            rope["original_max_position_embeddings"] = config["original_max_position_embeddings"]
        rope.setdefault("original_max_position_embeddings", length)
        if kind == "yarn":
            rope["factor"] = rope["factor"] or length / rope["original_max_position_embeddings"]
            if rope.get("attention_factor") is None and rope.get("mscale") and rope.get("mscale_all_dim"):
                over, under = (_magnitude(rope["factor"], rope[name]) for name in ("mscale", "mscale_all_dim"))
                rope["attention_factor"] = over / under
        optional = {"attention_factor", "beta_fast", "beta_slow", "truncate"}
        for name in USED[kind]:
            if name not in optional or rope.get(name) is not None:
                values[name] = rope[name]
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Return `rope_parameters` of a `config.json`."""
        used = {name: getattr(self, name) for name in USED[self.rope_type]}
        values = {"rope_type": self.rope_type, "rope_theta": self.rope_theta, **used}
        return {name: value for name, value in values.items() if value is not None}


def _magnitude(factor: float, scale: float = 1.0) -> float:
    """Return YaRN's factor of queries and keys for a context that is `factor` times longer."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary(position_ids: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosine and signed sine of the angles at `position_ids` [batch, length], each [batch, length, 1, head_dim].

    The first half of the sine is negated, so that `rotate` takes two products and a sum.
    """
    rope = config.rope_parameters
    angles = position_ids[..., None, None].float() * rotary_frequencies(rope, config.head_dim, position_ids.device)
    cos, sin = angles.cos(), angles.sin()
    if rope.rope_type == "yarn":
        scale = _magnitude(rope.factor) if rope.attention_factor is None else rope.attention_factor
        cos, sin = cos * scale, sin * scale
    return torch.cat((cos, cos), -1).to(dtype), torch.cat((-sin, sin), -1).to(dtype)


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair (x[i], x[i + head_dim/2]) of `x` by the angle of its position.

    `x` is [batch, length, heads, head_dim]; `rotation` is the result of `rotary`.
    """
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


@lru_cache
def rotary_frequencies(rope: RopeParameters, head_dim: int, device: torch.device) -> Tensor:
    """Return radians per position, float32 [head_dim / 2], with the scaling of long wavelengths.

    This is not a buffer of the model: moving the model to bfloat16 would round it and shift positions near 131,072. The
    operations and their order are those of transformers, because a difference in the last bit would do the same.
    """
    powers = rope.rope_theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    frequencies = 1.0 / powers
    if rope.rope_type == "default":
        return frequencies
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "yarn":
        keep, stretched = 1 - _ramp(rope, head_dim).to(device), 1.0 / (rope.factor * powers)
        return stretched * (1 - keep) + frequencies * keep
    turns = rope.original_max_position_embeddings / (2 * math.pi / frequencies)  # within the original context
    keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    keep = keep.clamp(0, 1)
    return (1 - keep) * frequencies / rope.factor + keep * frequencies


def _ramp(rope: RopeParameters, head_dim: int) -> Tensor:
    """Return how far YaRN stretches each wavelength, from 0 (not) to 1 (by `factor`), float32 [head_dim / 2]."""

    def dimension(turns: float) -> float:
        wavelength = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(rope.rope_theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    return ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
