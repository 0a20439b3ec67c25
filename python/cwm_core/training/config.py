"""Settings of a training run, from a TOML file and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ..support.arguments import convert_fields, to_python_numbers

CHOICES = {
    "optimizer": ("adamw", "muon"),
    "schedule": ("cosine", "linear", "constant"),
    "dtype": ("float32", "bfloat16", "float8"),
    "activation_checkpointing": ("none", "selective", "full"),
    "attention": ("default", "flex", "varlen", "sdpa", "reference"),
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. Raises ValueError, naming the key, for a value that cannot be meant.

    The defaults of betas, weight decay, clipping, schedule and final rate are those of the CWM report
    (arXiv 2510.02387); learning rate and warm-up suit models of a few million parameters.
    """

    max_steps: int = 0
    """Optimizer steps to take; 0: only `max_seconds` ends the run. Steps make a run repeatable, seconds do not."""
    max_seconds: float = 0.0
    """Seconds to train for, over all resumes; 0: only `max_steps` ends the run."""
    grad_accumulation: int = 1
    """Batches of the loader to one optimizer step."""
    optimizer: str = "adamw"
    """"adamw", or "muon": Muon for the matrices of the layers and AdamW for the rest."""
    learning_rate: float = 1e-3
    """Highest rate of AdamW; embeddings, norms and output layer keep it when the optimizer is Muon."""
    muon_learning_rate: float = 2e-2
    """Highest rate of Muon, whose updates are scaled by √max(1, rows / columns)."""
    schedule: str = "cosine"
    """Shape of the decay after warm-up: "cosine", "linear" or "constant"."""
    warmup_steps: int = 100
    final_learning_rate: float = 0.01
    """Rate at the end, as a fraction of the highest."""
    horizon_tokens: int = 0
    """Tokens over which the rate falls, for a run that is one of several stages; 0: over this run."""
    start_tokens: int = 0
    """Of the horizon, the tokens that the stages before this one took."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """Of matrices; norms do not decay."""
    grad_clip: float = 1.0
    """Highest norm of the gradient of all parameters together."""
    dtype: str = "float32"
    """Of the matrix products: "bfloat16", or "float8" for those of the layers (needs torchao) and "bfloat16" for the
    rest; parameters stay as the model has them."""
    data_parallel_replicas: int = 1
    """Replicas of the sharded model: more than 1 trade memory for communication over slow links (HSDP)."""
    tensor_parallel: int = 1
    """Ranks that share each matrix product."""
    context_parallel: int = 1
    """Ranks that share each row of tokens."""
    activation_checkpointing: str = "none"
    """Activations kept for the backward pass: "none" keeps all, "selective" the outputs of matrix products and
    attention, "full" only the input of each layer (see `cwm_core.planning.plan.Workload`)."""
    compile: bool = False
    """Whether the layers are compiled."""
    attention: str = "default"
    """Kernels of attention, all equal: "default" leaves the model's `attention_backend`, which is "flex" on a GPU and
    "sdpa" elsewhere; or "flex", "varlen", "sdpa", "reference" (docs/concepts/model.md)."""
    deterministic: bool = False
    """On a GPU, take only algorithms that give the same result every time, which are slower; on a CPU all do."""
    device: str = "cpu"
    seed: int = 0
    """Of PyTorch's generator at the start of a fresh run; the initial weights are the caller's."""
    checkpoint_folder: str = ""
    """Where checkpoints go and a run resumes from; empty: none are written."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step and a stop by signal write one too."""
    keep_checkpoints: int = 2
    """Older ones are deleted."""

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
        if self.start_tokens and self.start_tokens >= self.horizon_tokens:
            raise ValueError(f"start_tokens ({self.start_tokens}) must be below horizon_tokens ({self.horizon_tokens})")
        if not self.max_steps and not self.max_seconds:
            raise ValueError("a run needs max_steps or max_seconds to end")

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a TOML file, then apply `overrides` such as "learning_rate=3e-4".

        Raises ValueError for a malformed file, an unknown key, or a value of a wrong type, naming it.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls.from_dict(values | parse_overrides(overrides))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Check keys and types of `values` and make a configuration; raises ValueError as `from_toml`."""
        return cls(**checked(values, {field.name: type(field.default) for field in dataclasses.fields(cls)}))


def checked(values: Mapping[str, Any], types: Mapping[str, type]) -> dict[str, Any]:
    """The values as their `types`, an integer also where a float is meant; raises ValueError, naming the key."""
    result = {}
    for key, given in values.items():
        value = to_python_numbers(given)
        if key not in types:
            raise ValueError(f"unknown key {key!r}; there are {', '.join(types)}")
        expected = types[key]
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise ValueError(f"{key} must be {'a table' if expected is dict else expected.__name__}, got {value!r}")
        result[key] = expected(value)
    return result


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Turn "key=value" texts into values: a value is read as TOML, and as plain text where it is not TOML."""
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
