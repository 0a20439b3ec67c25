"""Sharded parameters (`DTensor`): the box of the whole tensor that a rank holds, and moving data in and out of it.

`cwm_core.training.parallelize` shards a model. Its weights are filled in afterwards one tensor at a time, so that a
rank never holds more than its shards and one whole tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def part(tensor: Tensor) -> tuple[slice, ...]:
    """Return the box of the whole tensor that this rank holds, the whole tensor if it is not sharded."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))


def whole(tensor: Tensor) -> Tensor:
    """Return the whole tensor. All ranks must call this function if the tensor is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, local: Tensor) -> Tensor:
    """Return a tensor sharded like `tensor` whose shard on this rank is `local`.

    Returns `local` itself if `tensor` is not sharded.
    """
    if not isinstance(tensor, DTensor):
        return local
    mesh, placements = tensor.device_mesh, tensor.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride())


def set_parameter(model: nn.Module, name: str, local: Tensor) -> None:
    """Set this rank's shard of the parameter `name`: copy into it, or replace it if it is on the meta device."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    old = getattr(module, leaf)
    if old.is_meta:
        setattr(module, leaf, nn.Parameter(sharded_like(old, local), old.requires_grad))
        return
    with torch.no_grad():
        (old.to_local() if isinstance(old, DTensor) else old).copy_(local)
