"""What a folder calls things: the file of its configuration, its tensors' names, the order of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig


class Layout:
    """Names as in `Transformer`, configuration as Hugging Face has it: how distributed checkpoints are kept here."""

    config_file = "config.json"
    ignored: frozenset[str] = frozenset()
    """Stored tensors that hold nothing learned."""

    def read_config(self, folder: Path) -> ModelConfig:
        """The model's shape; raises ValueError, naming the file, for values that describe none that can be built."""
        file = folder / self.config_file
        values = read_json(file)
        try:
            return self.config_from(values)
        except KeyError as error:
            raise ValueError(f"{file} lacks {error}") from None
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"{file}: {error}") from None

    def config_from(self, values: dict[str, Any]) -> ModelConfig:
        """The configuration that `values` of the file describe."""
        return ModelConfig.from_hf(values)

    def config_values(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
        """What to write to the file, for weights of type `dtype`."""
        return config.to_hf() | {"dtype": str(dtype).removeprefix("torch.")}

    def stored_name(self, name: str) -> str:
        """What the folder calls the parameter `name`."""
        return name

    def in_order(self, name: str) -> bool:
        """Whether the parameter `name` is stored with its rows in the order that `Transformer` has."""
        return True

    def from_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """The parameter `name`, from the stored tensor of the same shape."""
        return tensor

    def to_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """The inverse of `from_stored`."""
        return tensor


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file; raises OSError if it cannot be read and ValueError, naming it, if it holds no object."""
    try:
        values = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds {type(values).__name__}, expected an object")
    return values


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write an object, indented."""
    file.write_text(json.dumps(values, indent=2) + "\n")
