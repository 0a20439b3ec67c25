"""Initialize weights: normally distributed, with norms at 1 and biases at 0."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import sharding

if TYPE_CHECKING:
    from .config import ModelConfig
    from .transformer import Transformer

DEVIATION = 0.02
SCHEMES = ("small", "unit")


def deviation(name: str, config: ModelConfig, scheme: str = "small") -> float:
    """Return the standard deviation of the fresh weights of the matrix `name`.

    Projections that write to the residual stream are scaled by 1/√(2 layers), which keeps the variance of the stream
    independent of depth (GPT-2).

    Args:
        name: Name of the parameter.
        config: Sizes of the model.
        scheme: "small", 0.02 for all matrices (GPT-2), or "unit": products of unit scale inside the layers, embeddings
            of scale 0.5, and an output layer of zeros. A narrow model under Muon, whose updates do not shrink with the
            width, learns more in the same time from "unit".
    """
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return DEVIATION / math.sqrt(2 * config.num_hidden_layers)
    if scheme == "small":
        return DEVIATION
    return {"embed_tokens.weight": 0.5, "lm_head.weight": 0.0}.get(name, 1 / math.sqrt(config.hidden_size))


def initialize(model: Transformer, seed: int, device: str | torch.device = "cpu", scheme: str = "small") -> None:
    """Give `model` fresh weights that do not depend on how it is sharded.

    By default the distribution is that of `Transformer`. Each matrix is drawn whole in float32 from a generator of its
    own, seeded by `seed` and the name of the parameter, and each rank keeps its shard: a rank holds at most one whole
    matrix at a time. CPU and GPU generators draw different numbers from one seed, so compare runs on one kind of
    device.

    Args:
        model: Model to initialize in place, whole or sharded, possibly on the meta device.
        seed: Seed of all weights.
        device: Device to draw on, and the new device of parameters on the meta device. Other parameters stay where they
            are.
        scheme: See `deviation`.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            value = 0.0 if name.endswith(".bias") else 1.0
            drawn = torch.full(parameter.shape, value, device=device)
        else:
            drawn = _normal(parameter.shape, seed, name, device).mul_(deviation(name, model.config, scheme))
        local = drawn[sharding.part(parameter)].to(parameter.dtype, copy=True)
        sharding.set_parameter(model, name, local)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _normal(shape: torch.Size, seed: int, name: str, device: str | torch.device) -> Tensor:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()  # the CPU's generator takes 32 bits
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
    return torch.randn(shape, generator=generator, device=device)
