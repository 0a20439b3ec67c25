"""Move batches of any loader to a device."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with all tensors on `device`, the same object if they are there already.

    Args:
        batch: A dataclass, a named tuple, or an object with attributes. If its tokens are not a tensor, its own
            `to_torch(device)` converts it.
        device: Device to move to.
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
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(batch, **moved)
    changed = copy.copy(batch)
    vars(changed).update(moved)
    return changed
