"""Training: the loop, its settings, checkpoints, and parallelism.

PyTorch is imported when a name that needs it is first used, so that preparing data does not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .config import TrainConfig

if TYPE_CHECKING:
    from .checkpoint import Checkpoints, latest
    from .metrics import Progress
    from .parallel import clip_grad_norm, parallelize
    from .trainer import Trainer, TrainingEnd
    from .world import World

__all__ = [
    "Checkpoints",
    "Progress",
    "TrainConfig",
    "Trainer",
    "TrainingEnd",
    "World",
    "clip_grad_norm",
    "latest",
    "parallelize",
]  # fmt: skip

_LAZY = {
    "Checkpoints": "checkpoint",
    "Progress": "metrics",
    "TrainingEnd": "trainer",
    "Trainer": "trainer",
    "World": "world",
    "clip_grad_norm": "parallel",
    "latest": "checkpoint",
    "parallelize": "parallel",
}


def __getattr__(name: str) -> Any:
    """Import names that need PyTorch on first use."""
    if name in _LAZY:
        return getattr(import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
