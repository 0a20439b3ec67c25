"""Run the matrix products of the layers in FP8, with torchao."""

from __future__ import annotations

import dataclasses

import torch

from ..model import Transformer

# Sizes of operands must be multiples of this, for scaled products on NVIDIA's tensor cores.
_MULTIPLE = 16


def convert_to_float8(model: Transformer, tensor_parallel: int, device: torch.device) -> None:
    """Compute the products of the layers' linear modules in float8, forward and backward, scaled by row.

    Weights keep their dtype, and embedding, output layer and attention stay unchanged. On a CPU the products are
    emulated: rounded to float8 and computed in the dtype of the weights.

    Args:
        model: Model to change in place.
        tensor_parallel: Number of ranks that will share each product.
        device: Device of the products.

    Raises:
        ModuleNotFoundError: torchao is not installed.
        ValueError: A size is not a multiple of 16 on each rank.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ModuleNotFoundError(
            f"dtype 'float8' needs torchao, which cannot be imported ({error}): "
            "run pip install '.[float8]' in a checkout of cwm-core, or use dtype 'bfloat16'",
            name="torchao",
        ) from error
    c = model.config
    rows = {
        "num_attention_heads x head_dim": c.num_attention_heads * c.head_dim,
        "num_key_value_heads x head_dim": c.num_key_value_heads * c.head_dim,
    }
    for name, size in {
        "hidden_size": c.hidden_size * tensor_parallel,
        "intermediate_size": c.intermediate_size,
        **rows,
    }.items():
        if size % (_MULTIPLE * tensor_parallel):
            raise ValueError(
                f"float8 needs {name} a multiple of {_MULTIPLE} on each of {tensor_parallel} tensor ranks: {size}"
            )
    config = dataclasses.replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=device.type == "cpu")
    for layer in model.layers:
        convert_to_float8_training(layer, config=config)
