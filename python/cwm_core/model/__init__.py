"""The transformer, its configuration, and its weights on disk. Needs PyTorch."""

from .attention import attention
from .config import ModelConfig, preset
from .initialization import initialize
from .loss import Loss, Objective, cross_entropy
from .rotary import RopeParameters
from .shipped import SHIPPED_FOLDER, SHIPPED_NAME, load_shipped
from .transformer import Transformer
from .weights import load, load_into, read_config, save

__all__ = [
    "SHIPPED_FOLDER", "SHIPPED_NAME", "Loss", "ModelConfig", "Objective", "RopeParameters", "Transformer", "attention",
    "cross_entropy", "initialize", "load", "load_into", "load_shipped", "preset", "read_config", "save",
]  # fmt: skip
