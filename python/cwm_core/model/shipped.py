"""Load the small model that is a part of the package. `docs/model-card.md` describes it."""

from __future__ import annotations

from pathlib import Path

import torch

from ..tokenizer import Tokenizer
from .transformer import Transformer
from .weights import load

SHIPPED_NAME = "cwm-small"
"""Name of the shipped model in messages and requests."""
SHIPPED_FOLDER = Path(__file__).parents[1] / "shipped"
"""Folder of the shipped model: weights in bfloat16, configuration, vocabulary, and `figures.json`."""


def load_shipped(device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer]:
    """Return the shipped model and its tokenizer. The model computes in float32.

    Args:
        device: Device of the model.

    Raises:
        FileNotFoundError: This installation has no shipped model.
    """
    if not (SHIPPED_FOLDER / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{SHIPPED_FOLDER} has no model: this installation of cwm-core ships none; name a model folder"
        )
    return load(SHIPPED_FOLDER, device, torch.float32), Tokenizer.load(SHIPPED_FOLDER)
