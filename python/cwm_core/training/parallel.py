"""Parallelism, applied to the plain model from outside: what is computed stays, and where changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from ..model import Transformer
from ..model.attention import Sdpa, choose_backend
from .activation_checkpointing import checkpoint_activations
from .config import TrainConfig
from .context import share_tokens
from .float8 import convert_to_float8
from .world import World


def parallelize(model: Transformer, config: TrainConfig, world: World) -> None:
    """Cut `model` over the ranks of `world` and prepare its layers as `config` says, in place.

    The model may be on the meta device (then `initialize` or `load_into` follows) or have weights, the same on each
    rank. Its names, and what `forward` and `loss` return, stay the same; gradients are summed over the ranks, not
    averaged. With one rank nothing is cut. Raises ValueError, naming the sizes, where ranks do not divide them.
    """
    if config.attention != "default":
        model.attention_backend = config.attention
    checkpointing = config.checkpointing != "none"
    if config.compile and checkpointing and choose_backend(model.attention_backend, world.device) is Sdpa:
        # PyTorch would leave the layers as they are, without a word: what is checkpointed compiles whole or not at all.
        raise ValueError("compile with checkpointing needs an attention_backend that compiles, which 'sdpa' does not")
    if config.dtype == "float8":
        convert_to_float8(model, world.tensor, world.device)
    if world.tensor > 1:
        share_matrices(model, world.mesh["tensor"])
    if world.context > 1:
        share_tokens(model, world.context_group, world.tensor)
    for layer in model.layers:
        if checkpointing:
            checkpoint_activations(layer, config.checkpointing)
        if config.compile:
            layer.compile()
    if world.size > 1:
        shard_weights(model, world.mesh, config.dtype)


def share_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Tensor parallelism with sequence parallelism in between (arXiv 2205.05198) over the one dimension of `mesh`.

    Each rank has a share of the heads, of the feed-forward's width and of the vocabulary, and between products a share
    of the tokens. Raises ValueError where the ranks do not divide those; of tokens, when the model gets them.
    """
    ranks, sizes = mesh.size(), model.config
    for name in ("vocab_size", "ffn_width", "heads", "kv_heads"):
        if getattr(sizes, name) % ranks:
            raise ValueError(f"{ranks} tensor ranks cannot share {name} = {getattr(sizes, name)}")
    columns, rows = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1))
    layer_plan: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "post_attention_layernorm": SequenceParallel(),
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), columns),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), columns),
        **dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), rows),
    }
    model_plan: dict[str, ParallelStyle] = {
        "embed_tokens": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "lm_head": ColwiseParallel(output_layouts=Replicate()),
    }

    def check(_: Any, args: tuple[Tensor, ...]) -> None:
        if args[0].shape[1] % ranks:
            raise ValueError(f"{ranks} tensor ranks cannot share {args[0].shape[1]} tokens")

    model.embed_tokens.register_forward_pre_hook(check)
    parallelize_module(model, mesh, model_plan, src_data_rank=None)
    # Waits for the exchange: a compiled layer (of PyTorch 2.13) gives no gradient to what is still on its way.
    model.embed_tokens.register_forward_hook(lambda _, __, out: out.clone())
    model.norm.register_forward_hook(lambda _, __, out: _all_tokens(out).to_local())
    for layer in model.layers:
        parallelize_module(layer, mesh, layer_plan, src_data_rank=None)
        for block in (layer.self_attn, layer.mlp):
            # Once for all the products that read it.
            block.register_forward_pre_hook(lambda _, args: (_all_tokens(args[0]), *args[1:]))
    if sizes.tied:
        model.lm_head.weight = model.embed_tokens.weight


def _all_tokens(x: DTensor) -> DTensor:
    return x.redistribute(placements=[Replicate()])


def shard_weights(model: Transformer, mesh: DeviceMesh, dtype: str) -> None:
    """FSDP2 over the dimensions "replicate" and "shard" of `mesh`, a layer at a time; gradients are summed."""
    data = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = MixedPrecisionPolicy() if dtype == "float32" else low
    # Norm and output layer are left to the whole model: gathered with it, and kept to the end of the backward pass.
    units: list[nn.Module] = [*model.layers, model]
    if not model.config.tied:
        units.insert(0, model.embed_tokens)
    for unit in units:
        fully_shard(unit, mesh=data, mp_policy=policy)
        # Sums, since the loss is divided by the tokens of all ranks already. Forced: gloo knows no other reduction.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `max_norm`; returns what it was before, a scalar.

    Of sharded parameters it is the norm over all ranks, the same on each.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
