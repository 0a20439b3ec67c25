"""Weights in 8 bits: a decoding step of few sequences takes the time that reading the weights takes."""

from __future__ import annotations

import torch
from torch import nn

from ..model import Transformer


def quantize_weights(model: Transformer, kind: str, device: str | torch.device | None = None) -> None:
    """Replace the weights of all layers' linear maps, in place, by "int8" or "float8" (e4m3) and a scale a row.

    The layers come to lie on `device` (None: where they are), each map quantized as soon as it is there: the device
    need never hold the model in full.
    Activations and products stay in the model's type. Embedding and output layer stay as they are: they are 5 % of the
    32 B model's weights, and errors of the output layer go straight into the logits. The model cannot be trained after.
    Raises ValueError for another kind, ModuleNotFoundError where torchao is not installed.
    """
    if kind not in ("int8", "float8"):
        raise ValueError(f"no quantization {kind!r}; there are int8 and float8")
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        raise ModuleNotFoundError(
            "quantization needs torchao: run pip install '.[float8]' in a checkout of cwm-core", name="torchao"
        ) from None
    config = Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(model.layers, config, lambda module, _: isinstance(module, nn.Linear), device=device)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights as they are stored, quantized or not."""
    return sum(stored_bytes(parameter.data) for parameter in model.parameters())


def stored_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the plain tensors that a quantized one is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()
    return sum(stored_bytes(getattr(tensor, name)) for name in names)
