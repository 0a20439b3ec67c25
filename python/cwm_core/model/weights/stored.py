"""Tensors in files, whole or in parts, and readers of safetensors and `.pth` files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..._native import DamagedFileError

Box = tuple[slice, ...]
"""Start and stop in each dimension of a tensor."""

# Types of weights, by their names in safetensors.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """Box of a tensor in a file."""

    offsets: tuple[int, ...]
    """Position of the box in the tensor."""
    shape: tuple[int, ...]
    """Shape of the box."""
    file: Path
    """File that holds the box."""
    read: Callable[[], Tensor]
    """Function that reads the box to the CPU."""

    def overlap(self, box: Box) -> Box | None:
        """Return the intersection of `box` and this part, in coordinates of the tensor; None if it is empty."""
        sides = tuple(
            slice(max(side.start, start), min(side.stop, start + size))
            for side, start, size in zip(box, self.offsets, self.shape, strict=True)
        )
        return sides if all(side.start < side.stop for side in sides) else None


@dataclass(frozen=True)
class Stored:
    """Tensor in files."""

    shape: tuple[int, ...]
    """Shape of the whole tensor."""
    dtype: torch.dtype
    """Type of its elements."""
    parts: tuple[Part, ...]
    """Parts that do not overlap and together are the whole tensor."""

    @classmethod
    def whole(cls, shape: tuple[int, ...], dtype: torch.dtype, file: Path, read: Callable[[], Tensor]) -> Stored:
        """Return a tensor in one part."""
        return cls(shape, dtype, (Part((0,) * len(shape), shape, file, read),))

    def load(self, device: str | torch.device, dtype: torch.dtype | None, box: Box | None = None) -> Tensor:
        """Return the tensor, or a `box` of it, in memory of its own, with at most one part in memory beside it.

        Args:
            device: Device of the result.
            dtype: Type of the result. Defaults to the stored type.
            box: Box to read. Defaults to the whole tensor.

        Raises:
            DamagedFileError: A part is damaged or has another shape than announced.
        """
        box = tuple(slice(0, size) for size in self.shape) if box is None else box
        tensor = torch.empty([side.stop - side.start for side in box], dtype=dtype or self.dtype, device=device)
        for part in self.parts:
            overlap = part.overlap(box)
            if overlap is None:
                continue
            read = part.read()
            if tuple(read.shape) != part.shape:
                raise DamagedFileError(f"{part.file}: a part is {list(read.shape)}, expected {list(part.shape)}")
            tensor[_within(overlap, [side.start for side in box])].copy_(read[_within(overlap, part.offsets)])
        return tensor


def _within(box: Box, origin: Sequence[int]) -> Box:
    """Return the same box in coordinates relative to `origin`."""
    return tuple(slice(side.start - start, side.stop - start) for side, start in zip(box, origin, strict=True))


def fill(shape: Sequence[int], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Return whether boxes (offset and shape) lie within `shape`, start at distinct places, and have its total size."""
    inside = all(
        len(offsets) == len(sizes) == len(shape)
        and all(0 <= start <= start + size <= n for start, size, n in zip(offsets, sizes, shape, strict=True))
        for offsets, sizes in boxes
    )
    distinct = len({offsets for offsets, _ in boxes}) == len(boxes)
    return inside and distinct and sum(math.prod(sizes) for _, sizes in boxes) == math.prod(shape)


def safetensors_file(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name; raise DamagedFileError if it is damaged."""
    stored = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  not a mapping
                header = opened.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise DamagedFileError(
                        f"{file}: {name} is of type {header.get_dtype()}, expected one of {list(DTYPES)}"
                    )
                read = partial(_read_safetensors, file, name)
                stored[name] = Stored.whole(tuple(header.get_shape()), DTYPES[header.get_dtype()], file, read)
    except (SafetensorError, OverflowError) as error:
        raise DamagedFileError(f"{file} is not a complete safetensors file: {error}") from None
    return stored


def _read_safetensors(file: Path, name: str) -> Tensor:
    # Mapped again for each tensor, so that pages of tensors already copied leave memory.
    try:
        with safe_open(file, "pt") as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor
    except (SafetensorError, OverflowError) as error:
        raise DamagedFileError(f"{file} changed while it was read: {error}") from None


def pth_file(file: Path) -> dict[str, Stored]:
    """Return the tensors of a dictionary that `torch.save` wrote, memory-mapped, without running code from the file.

    Raises:
        DamagedFileError: The file is damaged, older than PyTorch 1.6, or holds anything but dense tensors.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise DamagedFileError(f"{file} is not a readable file of weights: {error}") from None
    if not isinstance(state, dict):
        raise DamagedFileError(f"{file} holds {type(state).__name__}, expected a dictionary of tensors")
    stored = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not is_weight(tensor):
            types = ", ".join(map(str, DTYPES.values()))
            raise DamagedFileError(f"{file}: {name!r} is not a dense tensor of type {types}")
        stored[name] = Stored.whole(tuple(tensor.shape), tensor.dtype, file, partial(_same, tensor))
    return stored


def is_weight(value: object) -> TypeGuard[Tensor]:
    """Return whether `value` is a dense tensor in host memory with a dtype that weights have."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in DTYPES.values()
    )


def _same(tensor: Tensor) -> Tensor:
    return tensor
