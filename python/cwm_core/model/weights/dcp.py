"""Checkpoints of torch.distributed.checkpoint: `.metadata`, and files that any number of processes wrote.

The weights are what such a checkpoint keeps under `model`; optimizers and the like beside them are passed over.

`.metadata` is a pickle, which PyTorch loads with all that a pickle may do. Here it is read into records that do
nothing, and what it names is neither imported nor called, so a hostile one can at worst describe wrong tensors. The
tensors themselves are read by PyTorch's reader of weights only.
"""

from __future__ import annotations

import io
import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed.checkpoint as torch_dcp
from torch import Tensor
from torch.distributed.checkpoint.planner import WriteItem

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
    """An object of the pickle, of any class or function: what it was made from, and its fields."""

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
        """Of a method that the pickle looked up."""
        return type(self)(*args)


class _Unpickler(pickle._Unpickler):
    """Builds records, types of tensors, and plain containers only: it imports nothing that the pickle names.

    The unpickler written in Python: the one in C sizes its memo by the largest index in the file, which may be any.
    """

    def find_class(self, module: str, name: str) -> Any:
        """A class of this one place, which a hostile file may spoil."""
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        return type("Record", (_Record,), {})


def records(file: Path) -> Any:
    """What the pickle in `file` describes, as records; raises nearly anything for a damaged one."""
    return _Unpickler(io.BytesIO(file.read_bytes())).load()


def tensors(folder: Path) -> dict[str, Stored]:
    """The tensors under `model` by name, without that prefix, none of them read yet.

    Raises OSError for a file that cannot be read, and ValueError, naming it, for one that is damaged, compressed, or
    names files outside the folder.
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
    except Exception as error:  # a pickle can be wrong in nearly any way
        raise ValueError(f"{file} is not metadata of a checkpoint that can be read: {error}") from None


def _offset(index: Any) -> tuple[int, ...] | None:
    offset = getattr(index, "offset", None)
    return None if offset is None else to_size(offset)


def to_text(value: Any) -> str:
    """A name out of a pickle; raises ValueError if it is none."""
    if not isinstance(value, str):
        raise ValueError("a name is not text")
    return value


def to_size(record: Any) -> tuple[int, ...]:
    """The numbers of a `torch.Size` out of a pickle; raises ValueError, or another error, if it is none."""
    (values,) = record.args
    return tuple(to_count(value) for value in values)


def to_count(value: Any) -> int:
    """A size or offset out of a pickle; raises ValueError if it is none."""
    if type(value) is not int or value < 0:  # not shown: the text of nested objects can be endless
        raise ValueError("a size or offset is not a whole number")
    return value


def _stored(folder: Path, name: str, entry: Any, places: dict[tuple[str, tuple[int, ...] | None], Any]) -> Stored:
    shape, dtype = to_size(entry.size), entry.properties.args[0]
    if dtype not in DTYPES.values():
        raise ValueError(f"{name} is of no type that weights have: {', '.join(map(str, DTYPES.values()))}")
    parts = []
    for chunk in entry.chunks:
        offsets = to_size(chunk.offsets)
        info = places[name, offsets]
        place = to_text(info.relative_path)
        if not is_plain_name(place):
            raise ValueError(f"{name} is in {place!r}, which is not a file directly in the folder")
        if getattr(info, "transform_descriptors", None):
            raise ValueError(f"{name} is compressed or otherwise transformed, which cannot be undone here")
        file = folder / place
        read = partial(_read, file, to_count(info.offset), to_count(info.length), dtype)
        parts.append(Part(offsets, to_size(chunk.sizes), file, read))
    if not fill(shape, [(part.offsets, part.shape) for part in parts]):
        raise ValueError(f"the parts of {name} do not make {list(shape)}")
    return Stored(shape, dtype, tuple(parts))


def _read(file: Path, offset: int, length: int, dtype: torch.dtype) -> Tensor:
    """The tensor that `torch.save` wrote at `offset`; of a view of the file, so that its bytes are in memory once."""
    try:
        with file.open("rb", buffering=0) as opened:
            view = io.BufferedReader(_View(opened, offset, length))
            tensor = torch.load(view, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything
        raise ValueError(f"{file} holds no readable tensor at byte {offset}: {error}") from None
    if not is_weight(tensor) or tensor.dtype != dtype:
        raise ValueError(f"{file} holds no dense tensor of {dtype} at byte {offset}")
    return tensor


class _View(io.RawIOBase):
    """`length` bytes of a file from `offset` on, as a file."""

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
    """Write the parameters `weights`, by our names, as `model`, under the names and in the row order of `layout`.

    Of weights that are sharded over `ranks`, each rank writes its own parts, and holds a second copy of those whose
    rows are stored in another order.
    """
    if ranks.sharded:
        state = {layout.stored_name(name): _reordered(name, tensor, layout, config) for name, tensor in weights.items()}
        torch_dcp.save({"model": state}, storage_writer=torch_dcp.FileSystemWriter(folder))
        return
    state = {layout.stored_name(name): tensor for name, tensor in weights.items()}
    names = dict(zip((PREFIX + stored for stored in state), weights, strict=True))

    class Planner(torch_dcp.DefaultSavePlanner):
        """Puts rows in order when their tensor is written: of none but it is there a second copy."""

        def transform_object(self, write_item: WriteItem, object: Any) -> Any:
            return layout.to_stored(names[write_item.index.fqn], object, config)

    writer = torch_dcp.FileSystemWriter(folder)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # that there is one process, as meant
        torch_dcp.save({"model": state}, storage_writer=writer, planner=Planner(), no_dist=True)


def _reordered(name: str, tensor: Tensor, layout: Layout, config: ModelConfig) -> Tensor:
    """A sharded parameter as `layout` stores it: an order of rows is one of the whole, which is gathered for it."""
    if layout.in_order(name):
        return tensor
    whole = layout.to_stored(name, sharding.whole(tensor), config)
    return sharding.sharded_like(tensor, whole[sharding.part(tensor)].clone())
