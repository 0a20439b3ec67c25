"""Quantize weights to 8 bits, since reading the weights dominates a decoding step of few sequences."""

from __future__ import annotations

import torch
from torch import nn

from ..model import Transformer


def quantize_weights(model: Transformer, kind: str, device: str | torch.device | None = None) -> None:
    """Quantize the linear layers of a model in place, with one scale per row. The model cannot be trained afterwards.

    Activations and products keep the model's type. The embedding and the output layer keep their weights: they are 5 %
    of the weights of the 32 B model, and errors of the output layer affect the logits directly.

    Args:
        model: The model.
        kind: "int8", or "float8" for e4m3.
        device: Device to move the layers to; None leaves them in place. Each layer is quantized as soon as it is moved,
            so the device never holds the unquantized model.

    Raises:
        ValueError: `kind` is unknown.
        ModuleNotFoundError: torchao is not installed.
    """
    if kind not in ("int8", "float8"):
        raise ValueError(f"unknown quantization {kind!r}; expected 'int8' or 'float8'")
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ModuleNotFoundError(
            "quantization needs torchao: run pip install '.[float8]' in a checkout of cwm-core", name="torchao"
        ) from None
    config = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(model.layers, config, lambda module, _: isinstance(module, nn.Linear), device=device)


def weight_bytes(model: nn.Module) -> int:
    """Return the size in bytes of a model's weights as stored, quantized or not."""
    return sum(stored_bytes(parameter.data) for parameter in model.parameters())


def stored_bytes(tensor: torch.Tensor) -> int:
    """Return the size in bytes of a tensor, or of the plain tensors inside a quantized one."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
