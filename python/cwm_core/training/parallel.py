"""Parallelism, applied to the plain model from outside."""

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
from ..model.attention import Mask, choose_backend
from ..model.attention.sdpa import Sdpa
from .activation_checkpointing import checkpoint_activations
from .config import TrainConfig
from .context_parallel import share_tokens
from .float8 import convert_to_float8
from .world import World

# Bytes of weights compared at a time.
_SUMMED = 1 << 22


def parallelize(model: Transformer, config: TrainConfig, world: World) -> None:
    """Shard `model` over the ranks of `world` and prepare its layers as `config` says, in place.

    Names of parameters and results of `forward` and `loss` stay the same. Gradients are summed over ranks, not
    averaged. With one rank nothing is sharded.

    Args:
        model: Model on the meta device, to be filled afterwards by `initialize` or `load_into`, or a model with
            weights: all ranks then get the weights of rank 0.
        config: Settings of the run.
        world: Ranks of the run.

    Raises:
        ValueError: Ranks do not divide a size, or the attention backend cannot run on the device.
    """
    if config.attention != "default":
        model.attention_backend = config.attention
    backend = _backend(model, world)
    checkpointing = config.activation_checkpointing != "none"
    if config.compile and checkpointing and backend is Sdpa:
        # PyTorch would silently not compile the layers: a checkpointed function compiles whole or not at all.
        raise ValueError(
            "compile with activation_checkpointing needs an attention_backend that compiles, which 'sdpa' does not"
        )
    if world.size > 1:
        share_weights(model, world)
    if config.dtype == "float8":
        convert_to_float8(model, world.tensor_parallel, world.device)
    if world.mesh is not None and world.tensor_parallel > 1:
        share_matrices(model, world.mesh["tensor"])
    if world.context_group is not None and world.context_parallel > 1:
        share_tokens(model, world.context_group, world.tensor_parallel)
    for layer in model.layers:
        if checkpointing:
            checkpoint_activations(layer, config.activation_checkpointing)
        if config.compile:
            layer.compile()
    if world.mesh is not None and world.size > 1:
        shard_weights(model, world.mesh, config.dtype)


def _backend(model: Transformer, world: World) -> type[Mask]:
    try:
        return choose_backend(model.attention_backend, world.device)
    except RuntimeError as error:
        raise ValueError(f"{error}; set attention to another backend") from None


def share_weights(model: Transformer, world: World) -> None:
    """Copy the weights of rank 0 to all ranks, except weights on the meta device."""
    for tensor in (*model.parameters(), *model.buffers()):
        if not tensor.is_meta:
            shared = tensor.detach().to(world.device, copy=True)
            dist.broadcast(shared, 0)
            tensor.data.copy_(shared)


def check_replicas(model: Transformer) -> None:
    """Raise ValueError on all ranks if copies of a weight differ between ranks.

    Training never makes differing copies equal, so the ranks would train different models.
    """
    sums: dict[tuple[DeviceMesh, int], dict[str, Tensor]] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            for dimension, placement in enumerate(parameter.placements):
                if placement.is_replicate() and parameter.device_mesh.size(dimension) > 1:
                    own = _bit_sum(parameter.to_local())
                    sums.setdefault((parameter.device_mesh, dimension), {})[name] = own
    different: set[str] = set()
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
            f"copies of {len(names)} weights differ between ranks, the first is {names[0]}: use the same seed on every "
            "rank, or set the weights before parallelize(), which copies those of rank 0"
        )


def _bit_sum(values: Tensor) -> Tensor:
    """Return a checksum of the bits of `values`, on their device."""
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for part in torch.split(values.detach().contiguous().flatten().view(torch.uint8), _SUMMED):
        weights = torch.arange(1, part.numel() + 1, device=part.device)
        total = total * 31 + (part * weights).sum()  # may overflow, equally on all ranks
    return total


def share_matrices(model: Transformer, mesh: DeviceMesh) -> None:
    """Apply tensor parallelism with sequence parallelism (arXiv 2205.05198) over the one dimension of `mesh`.

    Each rank has a share of the heads, of the feed-forward width and of the vocabulary, and between products a share of
    the tokens.

    Raises:
        ValueError: The ranks do not divide a size. The number of tokens is checked in the forward pass.
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
    if sizes.qk_norm:  # each rank normalizes its own heads
        heads = SequenceParallel(sequence_dim=2, use_local_output=True)
        layer_plan |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), heads)
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
    # Waits for the exchange: a compiled layer (PyTorch 2.13) gives no gradient to a pending tensor.
    model.embed_tokens.register_forward_hook(lambda _, __, out: out.clone())
    model.norm.register_forward_hook(lambda _, __, out: _all_tokens(out).to_local())
    for layer in model.layers:
        parallelize_module(layer, mesh, layer_plan, src_data_rank=None)
        for block in (layer.get_submodule("self_attn"), layer.get_submodule("mlp")):
            # Gathered once for all products that read it.
            block.register_forward_pre_hook(lambda _, args: (_all_tokens(args[0]), *args[1:]))
    if sizes.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _all_tokens(x: DTensor) -> DTensor:
    return x.redistribute(placements=[Replicate()])


def shard_weights(model: Transformer, mesh: DeviceMesh, dtype: str) -> None:
    """Apply FSDP2 over the dimensions "replicate" and "shard" of `mesh`, one layer at a time; gradients are summed."""
    data = mesh["replicate", "shard"] if mesh["replicate"].size() > 1 else mesh["shard"]
    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = MixedPrecisionPolicy() if dtype == "float32" else low
    # Norm and output layer belong to the whole model's unit: gathered with it and kept until the backward pass ends.
    units: list[nn.Module] = [*model.layers, model]
    if not model.config.tie_word_embeddings:
        units.insert(0, model.embed_tokens)
    for unit in units:
        sharded = fully_shard(unit, mesh=data, mp_policy=policy)
        # Sums, because the loss is already divided by the tokens of all ranks. Forced: gloo has no other reduction.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(model, "loss")


def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm`; return the norm before scaling, a scalar.

    For sharded parameters this is the norm over all ranks, equal on each.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([gradient for p in parameters if (gradient := p.grad) is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
