"""The trainer, its settings and its checkpoints. Needs PyTorch."""

from .checkpoint import latest, load
from .config import TrainConfig
from .trainer import Progress, Trainer

__all__ = ["Progress", "TrainConfig", "Trainer", "latest", "load"]
