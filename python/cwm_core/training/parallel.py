"""Parallelism, applied to the plain model from outside: what is computed stays, and where changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
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
from ..model.attention import Mask, Sdpa, choose_backend
from .activation_checkpointing import checkpoint_activations
from .config import TrainConfig
from .context_parallel import share_tokens
from .float8 import convert_to_float8
from .world import World

# Bytes of weights that are compared at a time.
_SUMMED = 1 << 22


def parallelize(model: Transformer, config: TrainConfig, world: World) -> None:
    """Cut `model` over the ranks of `world` and prepare its layers as `config` says, in place.

    The model may be on the meta device (then `initialize` or `load_into` follows) or have weights: all ranks then get
    those of rank 0. Its names, and what `forward` and `loss` return, stay the same; gradients are summed over the
    ranks, not averaged. With one rank nothing is cut. Raises ValueError, naming the sizes, where ranks do not divide
    them, and for an attention backend that cannot run on the device.
    """
    if config.attention != "default":
        model.attention_backend = config.attention
    backend = _backend(model, world)
    checkpointing = config.activation_checkpointing != "none"
    if config.compile and checkpointing and backend is Sdpa:
        # PyTorch would leave the layers as they are, without a word: what is checkpointed compiles whole or not at all.
        raise ValueError("compile with checkpointing needs an attention_backend that compiles, which 'sdpa' does not")
    if world.size > 1:
        share_weights(model, world)
    if config.dtype == "float8":
        convert_to_float8(model, world.tensor_parallel, world.device)
    if world.tensor_parallel > 1:
        share_matrices(model, world.mesh["tensor"])
    if world.context_parallel > 1:
        share_tokens(model, world.context_group, world.tensor_parallel)
    for layer in model.layers:
        if checkpointing:
            checkpoint_activations(layer, config.activation_checkpointing)
        if config.compile:
            layer.compile()
    if world.size > 1:
        shard_weights(model, world.mesh, config.dtype)


def _backend(model: Transformer, world: World) -> type[Mask]:
    try:
        return choose_backend(model.attention_backend, world.device)
    except RuntimeError as error:
        raise ValueError(f"{error}; choose another attention") from None


def share_weights(model: Transformer, world: World) -> None:
    """Give all ranks the weights of rank 0, except those on the meta device, which have none yet.

    Each rank has made its own, from the state of its own random number generator.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            shared = tensor.detach().to(world.device, copy=True)
            dist.broadcast(shared, 0)
            tensor.data.copy_(shared)


def check_replicas(model: Transformer) -> None:
    """Raise ValueError, on all ranks, if what several ranks have copies of differs between them.

    Copies that start out different are never made equal: the ranks would train several models.
    """
    sums: dict[tuple[DeviceMesh, int], dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            for dimension, placement in enumerate(parameter.placements):
                if placement.is_replicate() and parameter.device_mesh.size(dimension) > 1:
                    own = _bit_sum(parameter.to_local())
                    sums.setdefault((parameter.device_mesh, dimension), {})[name] = own
    different = set()
    for (mesh, dimension), values in sums.items():
        least, most = (torch.stack(list(values.values())) for _ in range(2))
        dist.all_reduce(least, dist.ReduceOp.MIN, group=mesh.get_group(dimension))
        dist.all_reduce(most, dist.ReduceOp.MAX, group=mesh.get_group(dimension))
        different.update(name for name, same in zip(values, (least == most).tolist(), strict=True) if not same)
    found: list[Any] = [None] * (dist.get_world_size() if sums else 1)
    if sums:
        dist.all_gather_object(found, sorted(different))
    if names := sorted({name for part in found for name in part or ()}):
        raise ValueError(
            f"the ranks' copies of {len(names)} weights differ, the first {names[0]}: give every rank the same "
            "weights, by the same seed, or before parallelize(), which gives all ranks those of rank 0"
        )


def _bit_sum(values: Tensor) -> Tensor:
    """A number that differs, all but surely, between different values; on their device."""
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for part in values.detach().contiguous().flatten().view(torch.uint8).split(_SUMMED):
        weights = torch.arange(1, part.numel() + 1, device=part.device)
        total = total * 31 + (part * weights).sum()  # it may overflow, on all ranks alike
    return total


def share_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Tensor parallelism with sequence parallelism in between (arXiv 2205.05198) over the one dimension of `mesh`.

    Each rank has a share of the heads, of the feed-forward's width and of the vocabulary, and between products a share
    of the tokens. Raises ValueError where the ranks do not divide those; of tokens, when the model gets them.
    """
    ranks, sizes = mesh.size(), model.config
    for name in ("vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
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
    if sizes.tie_word_embeddings:
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
    if not model.config.tie_word_embeddings:
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
