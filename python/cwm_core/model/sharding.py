"""Parameters that are shards (`DTensor`): which part of the whole a rank has, and how it gets there and back.

A model is cut by `cwm_core.training.parallelize`; its weights come after that, one tensor at a time: a rank never holds
more of them than its shards and a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def part(tensor: Tensor) -> tuple[slice, ...]:
    """Which box of the whole tensor this rank has; everything, if it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, gathered from all ranks if it is sharded: then all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, local: Tensor) -> Tensor:
    """A tensor cut as `tensor` is, whose part on this rank is `local`; `local` itself, if `tensor` is not sharded."""
    if not isinstance(tensor, DTensor):
        return local
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def set_parameter(model: nn.Module, name: str, local: Tensor) -> None:
    """Make `local` this rank's part of the parameter `name`: copied into it, or in its place where it is on meta."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if old.is_meta:
        setattr(module, leaf, nn.Parameter(sharded_like(old, local), old.requires_grad))
        return
    with torch.no_grad():
        (old.to_local() if isinstance(old, DTensor) else old).copy_(local)
