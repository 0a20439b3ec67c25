"""Running models: batched generation with a key/value cache. Needs PyTorch."""

from .engine import Engine, Generation

__all__ = ["Engine", "Generation"]
