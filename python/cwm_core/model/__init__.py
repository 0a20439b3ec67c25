"""The transformer, its configuration, and its weights on disk. Needs PyTorch."""

from .attention import attention
from .config import ModelConfig, preset
from .initialization import initialize
from .loss import Loss, Objective, cross_entropy
from .rotary import RopeParameters
from .transformer import Transformer
from .weights import load, load_into, read_config, save

__all__ = [
    "Loss", "ModelConfig", "Objective", "RopeParameters", "Transformer", "attention", "cross_entropy", "initialize",
    "load", "load_into", "preset", "read_config", "save",
]  # fmt: skip
