"""Model weights on disk: folders of Hugging Face and Meta, and distributed checkpoints. See docs/guides/weights.md."""

from .loading import load, load_into, read_config
from .saving import Format, save

__all__ = ["Format", "load", "load_into", "read_config", "save"]
