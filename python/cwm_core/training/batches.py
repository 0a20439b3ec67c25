"""Batches of any loader, on the device that computes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all its tensors on `device`.

    `batch` is a dataclass, a named tuple, or an object with attributes. One whose tokens are not tensors converts
    itself with `to_torch(device)`. A batch that is on the device already is returned as it is.
    """
    if not isinstance(batch.tokens, Tensor):
        return batch.to_torch(device)
    values = batch._asdict() if hasattr(batch, "_asdict") else vars(batch)
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    moved = {name: tensor.to(device, non_blocking=tensor.is_pinned()) for name, tensor in tensors.items()}
    moved = {name: tensor for name, tensor in moved.items() if tensor is not tensors[name]}
    if not moved:
        return batch
    if hasattr(batch, "_replace"):
        return batch._replace(**moved)
    if dataclasses.is_dataclass(batch):
        return dataclasses.replace(batch, **moved)
    changed = copy.copy(batch)
    vars(changed).update(moved)
    return changed
