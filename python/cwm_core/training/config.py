"""Settings of a training run, from a TOML file and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..support.arguments import convert_fields, to_python_numbers

CHOICES = {
    "optimizer": ("adamw", "muon"),
    "initialization": ("small", "unit"),
    "schedule": ("cosine", "linear", "constant"),
    "dtype": ("float32", "bfloat16", "float8", "auto"),
    "activation_checkpointing": ("none", "selective", "full"),
    "attention": ("default", "flex", "varlen", "sdpa", "reference"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run: the table `[training]`.

    Defaults of betas, weight decay, clipping, schedule and final rate are those of the CWM report (arXiv 2510.02387).
    The default learning rate and warm-up suit models of a few million parameters.

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    max_steps: int = 0
    """Optimizer steps to take; 0: only `max_seconds` ends the run. Runs limited by steps are reproducible."""
    max_seconds: float = 0.0
    """Training time in seconds over all resumes; 0: only `max_steps` ends the run."""
    grad_accumulation: int = 1
    """Batches of the loader per optimizer step."""
    optimizer: str = "adamw"
    """"adamw", or "muon": Muon for the matrices of the layers and AdamW for all other parameters."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW. With Muon it applies to embeddings, norms and output layer."""
    muon_learning_rate: float = 2e-2
    """Peak learning rate of Muon, whose updates are scaled by √max(1, rows / columns)."""
    schedule: str = "cosine"
    """Shape of the decay after warm-up: "cosine", "linear" or "constant"."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    final_learning_rate: float = 0.01
    """Learning rate at the end of the decay, as a fraction of the peak."""
    horizon_tokens: int = 0
    """Tokens over which the learning rate decays, for one of several stages that share a schedule; 0: this run."""
    start_tokens: int = 0
    """Tokens of the schedule consumed by earlier stages."""
    beta1: float = 0.9
    """Decay rate of AdamW's first moment."""
    beta2: float = 0.95
    """Decay rate of AdamW's second moment."""
    weight_decay: float = 0.1
    """Weight decay of matrices; norms do not decay."""
    grad_clip: float = 1.0
    """Largest norm of the gradient of all parameters together; larger gradients are scaled down."""
    dtype: str = "float32"
    """Type of matrix products: "float32", "bfloat16", "float8" for products of the layers (needs torchao) and bfloat16
    for the rest, or "auto": bfloat16 on a GPU, and on a CPU the faster of float32 and bfloat16, which `cwm train`
    measures. Parameters keep the dtype of the model."""
    data_parallel_replicas: int = 1
    """Replicas of the sharded model. More than 1 uses more memory and less communication over slow links (HSDP)."""
    tensor_parallel: int = 1
    """Ranks that share each matrix product."""
    context_parallel: int = 1
    """Ranks that share each row of tokens."""
    activation_checkpointing: str = "none"
    """Activations kept for the backward pass: "none" keeps all, "selective" the outputs of matrix products and
    attention, "full" only the input of each layer."""
    compile: bool = False
    """Whether to compile the layers."""
    attention: str = "default"
    """Attention kernels, equal in results: "flex", "varlen", "sdpa", "reference" (docs/concepts/model.md), or
    "default": "flex" on a GPU and "sdpa" elsewhere, unless the model's `attention_backend` is set."""
    deterministic: bool = False
    """Whether to use only deterministic, slower algorithms on a GPU. On a CPU all algorithms are deterministic."""
    device: str = "cpu"
    """Device to train on: "cpu", "cuda", "cuda:1", ..."""
    seed: int = 0
    """Seed of PyTorch's generator at the start of a fresh run, and of the initial weights in `cwm train`."""
    initialization: str = "small"
    """Scale of the initial weights in `cwm train`: "small", a standard deviation of 0.02 (GPT-2), or "unit", products
    of unit scale, for a narrow model under Muon; see `cwm_core.model.initialize`."""
    checkpoint_folder: str = ""
    """Folder that checkpoints are written to and resumed from; empty: no checkpoints. `cwm train` sets it."""
    checkpoint_every: int = 500
    """Steps between checkpoints. The last step and a stop by signal also write one."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""

    def __post_init__(self) -> None:
        """Check the values."""
        convert_fields(self)
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        positive = ("grad_accumulation", "learning_rate", "muon_learning_rate", "grad_clip", "checkpoint_every")
        for name in (*positive, "keep_checkpoints", "data_parallel_replicas", "tensor_parallel", "context_parallel"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        not_negative = ("max_steps", "max_seconds", "warmup_steps", "final_learning_rate", "weight_decay")
        for name in (*not_negative, "horizon_tokens", "start_tokens"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "muon_learning_rate", "final_learning_rate", "weight_decay"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be finite, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        if self.start_tokens and self.start_tokens >= self.horizon_tokens:
            raise ValueError(f"start_tokens ({self.start_tokens}) must be below horizon_tokens ({self.horizon_tokens})")
        if not self.max_steps and not self.max_seconds:
            raise ValueError("a run needs max_steps or max_seconds to end")

    def check_settled(self) -> None:
        """Raise ValueError if the dtype is "auto", which only a run of `cwm train` replaces by what it measures."""
        if self.dtype == "auto":
            raise ValueError('dtype "auto" is for cwm train: name "float32" or "bfloat16", or call settle_dtype first')

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file, then apply `overrides` such as "learning_rate=3e-4".

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is malformed, a key is unknown, or a value has a wrong type; the message names it.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls.from_dict(values | parse_overrides(overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Return the configuration with `values`; raise ValueError for an unknown key or a wrong type."""
        return cls(**checked(values, {field.name: type(field.default) for field in dataclasses.fields(cls)}))


def checked(values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """Return the values converted to their `types`; an integer is also a float.

    Raises:
        ValueError: A key is unknown or its value has a wrong type; the message names the key.
    """
    result = {}
    for key, given in values.items():
        value = to_python_numbers(given)
        if key not in types:
            raise ValueError(f"unknown key {key!r}; expected one of {', '.join(types)}")
        expected: type[Any] = types[key]
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ValueError(f"{key} must be {'a table' if expected is dict else expected.__name__}, got {value!r}")
        result[key] = float(value) if expected is float else value
    return result


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Parse "key=value" strings. A value is TOML, or a plain string if it is not valid TOML."""
    values = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"an override must be key=value, got {override!r}")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values
