"""Tensors of a run by name: parameters as `model.NAME`, optimizer states as `optimizer.NAME.KEY`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from ..model.weights.dcp import PREFIX

_OPTIMIZER = "optimizer."


def tensors_by_name(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """Return all tensors, DTensors included, without copying; raise TypeError for a state that is not a tensor."""
    tensors = {PREFIX + name: value for name, value in model.state_dict(keep_vars=True).items()}
    for name, parameter, optimizer in _optimized(model, optimizers):
        tensors |= {f"{_OPTIMIZER}{name}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}, checkpoints take tensors only")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def check_same(
    path: Path, stored: Mapping[str, TensorStorageMetadata], model: nn.Module, optimizers: Iterable[Optimizer]
) -> None:
    """Raise ValueError, naming the first tensor, if the tensors of the checkpoint `path` do not fit the model."""
    own = {PREFIX + name: value for name, value in model.state_dict().items()}
    parameters = {name: parameter for name, parameter, _ in _optimized(model, optimizers)}
    for name, tensor in own.items():
        if name not in stored:
            raise ValueError(f"{path} lacks {name}")
        size, dtype = stored[name].size, stored[name].properties.dtype
        if (size, dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(f"{path} has {name} as {list(size)} {dtype}, not {list(tensor.shape)} {tensor.dtype}")
    for name in stored.keys() - own.keys():
        parameter, _ = _owner(name)
        if parameter not in parameters:
            raise ValueError(f"{path} has {name}, which this run does not train")
        if stored[name].size not in ((), parameters[parameter].shape):
            raise ValueError(f"{path} has {name} as {list(stored[name].size)}, not as its parameter")


def make_states(stored: Mapping[str, TensorStorageMetadata], model: nn.Module, optimizers: Iterable[Optimizer]) -> None:
    """Give the optimizers zero states with the keys and dtypes of `stored`.

    A state is laid out like its parameter, or a scalar.
    """
    keys: dict[str, list[str]] = {}
    for full_name in stored:
        name, key = _owner(full_name)
        keys.setdefault(name, []).append(key)
    for name, parameter, optimizer in _optimized(model, optimizers):
        group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
        # Where torch.optim keeps its counts of steps.
        scalar_device = parameter.device if group.get("fused") or group.get("capturable") else "cpu"
        optimizer.state.pop(parameter, None)
        for key in keys.get(name, []):
            entry = stored[f"{_OPTIMIZER}{name}.{key}"]
            if entry.size == parameter.shape and entry.size != ():
                value = torch.zeros_like(parameter, dtype=entry.properties.dtype, requires_grad=False)
            else:
                value = torch.zeros((), dtype=entry.properties.dtype, device=scalar_device)
            optimizer.state[parameter][key] = value


def _optimized(model: nn.Module, optimizers: Iterable[Optimizer]) -> list[tuple[str, Tensor, Optimizer]]:
    """Return name in the state of the model, parameter and optimizer of each parameter that has an optimizer."""
    names = {id(value): name for name, value in model.state_dict(keep_vars=True).items()}
    return [
        (names[id(parameter)], parameter, optimizer)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def _owner(name: str) -> tuple[str, str]:
    """Return the parameter and the key of an optimizer state; two empty strings for other tensors."""
    parameter, _, key = name.removeprefix(_OPTIMIZER).rpartition(".") if name.startswith(_OPTIMIZER) else ("", "", "")
    return parameter, key
