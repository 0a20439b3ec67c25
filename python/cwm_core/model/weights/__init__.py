"""Weights on disk: folders of Hugging Face, of Meta, and of distributed checkpoints; see docs/guides/weights.md."""

from .loading import load, load_into, read_config
from .saving import Format, save

__all__ = ["Format", "load", "load_into", "read_config", "save"]
