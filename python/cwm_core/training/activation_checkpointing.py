"""Activations that the backward pass computes again instead of keeping them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# By name, since not every release of PyTorch has every one.
_KEPT = (
    # Products with weights; with scores of attention where no fused kernel computes it, nothing would be won.
    "aten.mm",
    "aten.addmm",
    "aten._scaled_mm",
    # Attention.
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_fused_attention_overrideable",
    "torch_attn._varlen_attn",
    # What tensor parallelism makes of a product: waiting for the other ranks again costs more than keeping it.
    "_c10d_functional.reduce_scatter_tensor",
)


def checkpoint_activations(layer: nn.Module, mode: str) -> None:
    """Discard activations of `layer` in the forward pass and recompute them in the backward pass.

    `mode` is "selective" or "full", as in `TrainConfig.activation_checkpointing`.

    Names of modules and parameters stay. The layer must be deterministic, as it is without dropout.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    plain = layer.forward

    @functools.wraps(plain)
    def forward(*args: Any) -> Any:  # a function of Python's: torch.compile skips partial objects
        return checkpoint(plain, *args, **options)

    layer.forward = forward


def _policy(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _kept() else CheckpointPolicy.PREFER_RECOMPUTE


@functools.cache
def _kept() -> frozenset[Any]:
    found: set[Any] = {torch.ops.higher_order.flex_attention}
    for name in _KEPT:
        namespace, _, operation = name.partition(".")
        packet = getattr(getattr(torch.ops, namespace), operation, None)
        if packet is not None:
            found.add(packet.default)
    return frozenset(found)
