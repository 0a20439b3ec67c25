"""The trainer, its settings and its checkpoints, parallelism.

Training needs PyTorch, which is imported when the trainer or a checkpoint is first named: preparing data does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from .checkpoint import Checkpoints, latest
    from .metrics import Progress
    from .parallel import clip_grad_norm, parallelize
    from .trainer import Trainer
    from .world import World

__all__ = [
    "Checkpoints", "Progress", "TrainConfig", "Trainer", "World", "clip_grad_norm", "latest",
    "parallelize",
]  # fmt: skip

_LAZY = {
    "Checkpoints": "checkpoint",
    "Progress": "metrics",
    "Trainer": "trainer",
    "World": "world",
    "clip_grad_norm": "parallel",
    "latest": "checkpoint",
    "parallelize": "parallel",
}


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch on first use."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
