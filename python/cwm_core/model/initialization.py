"""Fresh weights: normal with deviation 0.02, and smaller where they write to the residual stream."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import sharding

if TYPE_CHECKING:
    from .transformer import Transformer

DEVIATION = 0.02


def deviation(name: str, layers: int) -> float:
    """Of the matrix `name` in a model of so many layers.

    The projections that write to the residual stream start smaller by 1/√(2 layers), which keeps the stream's variance
    independent of depth (GPT-2).
    """
    residual = name.endswith(("o_proj.weight", "down_proj.weight"))
    return DEVIATION / math.sqrt(2 * layers) if residual else DEVIATION


def initialize(model: Transformer, seed: int, device: str | torch.device = "cpu") -> None:
    """Give `model` fresh weights of the distribution that `Transformer` has, the same however it is sharded.

    Parameters on the meta device come to be on `device`, of their own types; others are overwritten where they are.
    Each matrix is drawn whole in float32 from a generator of its own, which `seed` and its name determine, and each
    rank keeps its part: beside the model a rank holds one matrix. Draws are made on `device`, and CPU and GPU draw
    different numbers from one seed: runs compare on one kind of device.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            drawn = torch.ones(parameter.shape, device=device)
        else:
            drawn = _normal(parameter.shape, seed, name, device).mul_(deviation(name, model.config.num_hidden_layers))
        local = drawn[sharding.part(parameter)].to(parameter.dtype, copy=True)
        sharding.set_parameter(model, name, local)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _normal(shape: torch.Size, seed: int, name: str, device: str | torch.device) -> Tensor:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=4).digest()  # the CPU's generator takes 32 bits
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest, "little"))
    return torch.randn(shape, generator=generator, device=device)
