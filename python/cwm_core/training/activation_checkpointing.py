"""Activation checkpointing: discard activations in the forward pass and recompute them in the backward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

# By name, because not every release of PyTorch has every operation.
_KEPT = (
    # Products with weights. Keeping the scores of attention, which unfused attention computes, would save nothing.
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
    # Results of products under tensor parallelism: waiting for the other ranks again costs more than the memory.
    "_c10d_functional.reduce_scatter_tensor",
)


def checkpoint_activations(layer: nn.Module, mode: str) -> None:
    """Make `layer` discard activations in the forward pass and recompute them in the backward pass.

    Names of modules and parameters stay. The layer must be deterministic, which it is without dropout.

    Args:
        layer: Module to change in place.
        mode: "selective" or "full", as in `TrainConfig.activation_checkpointing`.
    """
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if mode == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)
    plain = layer.forward

    @functools.wraps(plain)
    def forward(*args: Any) -> Any:  # torch.compile skips partial objects
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
