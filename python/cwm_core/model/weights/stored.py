"""A tensor in files, whole or in parts, and the two kinds of file that hold whole ones: safetensors and `.pth`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Box = tuple[slice, ...]
"""Of a tensor: from where to where in each dimension."""

# Types of weights, by their names in safetensors.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Part:
    """A box of a tensor: where it lies in the tensor, its shape, its file, and how to read it to the CPU."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: Path
    read: Callable[[], Tensor]

    def overlap(self, box: Box) -> Box | None:
        """What of `box` lies in this part, where in the tensor; None if nothing does."""
        sides = tuple(
            slice(max(side.start, start), min(side.stop, start + size))
            for side, start, size in zip(box, self.offsets, self.shape, strict=True)
        )
        return sides if all(side.start < side.stop for side in sides) else None


@dataclass(frozen=True)
class Stored:
    """A tensor in files: its shape, its type, and its parts, of which none overlap."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: tuple[Part, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...], dtype: torch.dtype, file: Path, read: Callable[[], Tensor]) -> Stored:
        """A tensor in one part."""
        return cls(shape, dtype, (Part((0,) * len(shape), shape, file, read),))

    def load(self, device: str | torch.device, dtype: torch.dtype | None, box: Box | None = None) -> Tensor:
        """The tensor, or a `box` of it, in memory of its own; no more than one part is in memory beside it.

        Raises ValueError, naming the file, for a part that is damaged or not what it was announced as.
        """
        box = tuple(slice(0, size) for size in self.shape) if box is None else box
        tensor = torch.empty([side.stop - side.start for side in box], dtype=dtype or self.dtype, device=device)
        for part in self.parts:
            overlap = part.overlap(box)
            if overlap is None:
                continue
            read = part.read()
            if tuple(read.shape) != part.shape:
                raise ValueError(f"{part.file}: a part is {list(read.shape)}, expected {list(part.shape)}")
            tensor[_within(overlap, [side.start for side in box])].copy_(read[_within(overlap, part.offsets)])
        return tensor


def _within(box: Box, origin: Sequence[int]) -> Box:
    """The same box, counted from `origin`."""
    return tuple(slice(side.start - start, side.stop - start) for side, start in zip(box, origin, strict=True))


def fill(shape: Sequence[int], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether boxes, offsets and shapes, at distinct places lie within `shape` and are as large as it together."""
    inside = all(
        len(offsets) == len(sizes) == len(shape)
        and all(0 <= start <= start + size <= n for start, size, n in zip(offsets, sizes, shape, strict=True))
        for offsets, sizes in boxes
    )
    distinct = len({offsets for offsets, _ in boxes}) == len(boxes)
    return inside and distinct and sum(math.prod(sizes) for _, sizes in boxes) == math.prod(shape)


def safetensors_file(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name; raises ValueError, naming it, where it is damaged."""
    stored = {}
    try:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  no mapping
                header = opened.get_slice(name)
                if header.get_dtype() not in DTYPES:
                    raise ValueError(f"{file}: {name} is of type {header.get_dtype()}, expected one of {list(DTYPES)}")
                read = partial(_read_safetensors, file, name)
                stored[name] = Stored.whole(tuple(header.get_shape()), DTYPES[header.get_dtype()], file, read)
    except (SafetensorError, OverflowError) as error:
        raise ValueError(f"{file} is not a whole safetensors file: {error}") from None
    return stored


def _read_safetensors(file: Path, name: str) -> Tensor:
    # A mapping of its own for each tensor: pages of those already copied do not stay in memory.
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(name)
    except (SafetensorError, OverflowError) as error:
        raise ValueError(f"{file} changed while it was read: {error}") from None


def pth_file(file: Path) -> dict[str, Stored]:
    """The tensors of a dictionary that `torch.save` wrote, memory-mapped, without running code from the file.

    Raises ValueError, naming the file, if it is damaged, of the form before PyTorch 1.6, or holds anything else.
    """
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"{file} is not a readable file of weights: {error}") from None
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds {type(state).__name__}, expected a dictionary of tensors")
    stored = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not is_weight(tensor):
            raise ValueError(f"{file}: {name!r} is not a dense tensor of type {', '.join(map(str, DTYPES.values()))}")
        stored[name] = Stored.whole(tuple(tensor.shape), tensor.dtype, file, partial(_same, tensor))
    return stored


def is_weight(value: object) -> bool:
    """Whether what a file held is a dense tensor in memory of a type that weights have."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.dtype in DTYPES.values()
    )


def _same(tensor: Tensor) -> Tensor:
    return tensor
