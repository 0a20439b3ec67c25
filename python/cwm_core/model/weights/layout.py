"""Naming conventions of a folder: configuration file, tensor names, and order of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._native import DamagedFileError
from ...support.jsonl import read_object
from ..config import ModelConfig


class Layout:
    """Layout of a distributed checkpoint: tensor names of `Transformer` and the configuration of Hugging Face."""

    config_file = "config.json"
    ignored: frozenset[str] = frozenset()
    """Stored tensors that are not weights."""

    def read_config(self, folder: Path) -> ModelConfig:
        """Return the configuration in `folder`.

        Raises:
            OSError: The file cannot be read.
            DamagedFileError: The file is not a JSON object or lacks a key.
            ValueError: The file describes a model that cannot be built.
        """
        file = folder / self.config_file
        values = read_object(file)
        try:
            return self.config_from(values)
        except KeyError as error:
            raise DamagedFileError(f"{file} lacks {error}") from None
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"{file}: {error}") from None

    def config_from(self, values: dict[str, Any]) -> ModelConfig:
        """Return the configuration that the `values` of the file describe."""
        return ModelConfig.from_hf(values)

    def config_values(self, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
        """Return the values to write to the file for weights of type `dtype`."""
        return config.to_hf() | {"dtype": str(dtype).removeprefix("torch.")}

    def stored_name(self, name: str) -> str:
        """Return the name under which the folder stores the parameter `name`."""
        return name

    def in_order(self, name: str) -> bool:
        """Return whether the rows of the parameter `name` are stored in the order of `Transformer`."""
        return True

    def from_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Return the parameter `name` from the stored tensor, which has the same shape."""
        return tensor

    def to_stored(self, name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
        """Invert `from_stored`."""
        return tensor


def write_json(file: Path, values: dict[str, Any]) -> None:
    """Write a JSON object, indented."""
    file.write_text(json.dumps(values, indent=2) + "\n")
