"""Checkpoints of torch.distributed.checkpoint: `.metadata` and the files that any number of processes wrote.

The weights are the tensors under `model`. Optimizers and everything else are ignored.

`.metadata` is a pickle, and PyTorch unpickles it without restrictions. This module reads it into inert records:
classes and functions that the pickle names are neither imported nor called, so a hostile file can at worst describe
wrong tensors. The tensors themselves are read with `weights_only=True`.
"""

from __future__ import annotations

import io
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

from ..._native import DamagedFileError
from .. import sharding
from ..config import ModelConfig
from .huggingface import is_plain_name
from .layout import Layout
from .ranks import Ranks
from .stored import DTYPES, Part, Stored, fill, is_weight

METADATA = ".metadata"
PREFIX = "model."

_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}


class _Record:
    """Stand-in for an object of the pickle, of any class or function: its arguments and its fields."""

    def __new__(cls, *args: Any, **_: Any) -> Self:
        record = super().__new__(cls)
        record.args = args
        return record

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.args = state

    def __call__(self, *args: Any) -> _Record:
        """Stand in for the call of a method that the pickle looked up."""
        return type(self)(*args)


class _Unpickler(pickle._Unpickler):
    """Unpickler that builds records, dtypes and plain containers only, and imports nothing that the pickle names.

    It derives from the unpickler written in Python: the one in C allocates its memo by the largest index in the file,
    which an attacker chooses.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Return a new class for each name, so that a hostile file can only damage its own classes."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return type("Record", (_Record,), {})


def records(file: Path) -> Any:
    """Return the content of the pickle in `file` as records. Raises nearly any exception for a damaged file."""
    return _Unpickler(io.BytesIO(file.read_bytes())).load()


def tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors under `model` by name, without that prefix and not read yet.

    Raises:
        OSError: A file cannot be read.
        DamagedFileError: `.metadata` is damaged, describes a compressed tensor, or names files outside the folder.
    """
    file = folder / METADATA
    try:
        metadata = records(file)
        tensors, storage = metadata.state_dict_metadata, metadata.storage_data
        places = {(to_text(index.fqn), _offset(index)): info for index, info in storage.items()}
        return {
            name.removeprefix(PREFIX): _stored(folder, name, entry, places)
            for name, entry in tensors.items()
            if name.startswith(PREFIX) and hasattr(entry, "chunks")
        }
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DamagedFileError(f"{file} is not readable metadata of a checkpoint: {error}") from None


def _offset(index: Any) -> tuple[int, ...] | None:
    offset = getattr(index, "offset", None)
    return None if offset is None else to_size(offset)


def to_text(value: Any) -> str:
    """Return a string of a pickle; raise ValueError for another type."""
    if not isinstance(value, str):
        raise ValueError("a name is not a string")
    return value


def to_size(record: Any) -> tuple[int, ...]:
    """Return the numbers of a `torch.Size` of a pickle; raise ValueError or another exception for another type."""
    (values,) = record.args
    return tuple(to_count(value) for value in values)


def to_count(value: Any) -> int:
    """Return a size or offset of a pickle; raise ValueError for another type or a negative number."""
    if type(value) is not int or value < 0:  # not printed: the repr of nested objects can be endless
        raise ValueError("a size or offset is not a non-negative integer")
    return value


def _stored(folder: Path, name: str, entry: Any, places: dict[tuple[str, tuple[int, ...] | None], Any]) -> Stored:
    shape, dtype = to_size(entry.size), entry.properties.args[0]
    if dtype not in DTYPES.values():
        raise ValueError(f"{name} has dtype {dtype}, expected one of {', '.join(map(str, DTYPES.values()))}")
    parts = []
    for chunk in entry.chunks:
        offsets = to_size(chunk.offsets)
        info = places[name, offsets]
        place = to_text(info.relative_path)
        if not is_plain_name(place):
            raise ValueError(f"{name} is in {place!r}, which is not a file directly in the folder")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{name} is compressed or otherwise transformed, which is not supported")
        file = folder / place
        read = partial(_read, file, to_count(info.offset), to_count(info.length), dtype)
        parts.append(Part(offsets, to_size(chunk.sizes), file, read))
    if not fill(shape, [(part.offsets, part.shape) for part in parts]):
        raise ValueError(f"the parts of {name} do not make {list(shape)}")
    return Stored(shape, dtype, tuple(parts))


def _read(file: Path, offset: int, length: int, dtype: torch.dtype) -> Tensor:
    """Return the tensor that `torch.save` wrote at `offset`, with one copy of the bytes in memory."""
    try:
        with file.open("rb", buffering=0) as opened:
            view = io.BufferedReader(_View(opened, offset, length))
            tensor: object = torch.load(view, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise DamagedFileError(f"{file}: the tensor at byte {offset} is not readable: {error}") from None
    if not is_weight(tensor) or tensor.dtype != dtype:
        raise DamagedFileError(f"{file}: expected a dense tensor of {dtype} at byte {offset}")
    return tensor


class _View(io.RawIOBase):
    """A file object over `length` bytes of a file from `offset` on."""

    def __init__(self, file: io.FileIO, offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        self.position = position + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.position)
        count = self.file.readinto(memoryview(buffer)[: max(0, self.length - self.position)]) or 0
        self.position += count
        return count


def write(weights: dict[str, Tensor], folder: Path, layout: Layout, config: ModelConfig, ranks: Ranks) -> None:
    """Write the parameters `weights`, named as in `Transformer`, under `model` with names and row order of `layout`.

    If the weights are sharded over `ranks`, each rank writes its own shards, and holds a second copy of those whose
    rows are stored in another order.
    """
    if ranks.sharded:
        state = {layout.stored_name(name): _reordered(name, tensor, layout, config) for name, tensor in weights.items()}
        save({"model": state}, storage_writer=FileSystemWriter(folder))
        return
    state = {layout.stored_name(name): tensor for name, tensor in weights.items()}
    names = dict(zip((PREFIX + stored for stored in state), weights, strict=True))

    class Planner(DefaultSavePlanner):
        """Reorders the rows of each tensor as it is written, so that at most one tensor is in memory twice."""

        def transform_object(self, write_item: WriteItem, object: Any) -> Any:
            return layout.to_stored(names[write_item.index.fqn], object, config)

    writer = FileSystemWriter(folder)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # PyTorch warns of a single process
        save({"model": state}, storage_writer=writer, planner=Planner(), no_dist=True)


def _reordered(name: str, tensor: Tensor, layout: Layout, config: ModelConfig) -> Tensor:
    """Return a sharded parameter in the row order of `layout`; a different order needs the whole tensor."""
    if layout.in_order(name):
        return tensor
    whole = layout.to_stored(name, sharding.whole(tensor), config)
    return sharding.sharded_like(tensor, whole[sharding.part(tensor)].clone())
