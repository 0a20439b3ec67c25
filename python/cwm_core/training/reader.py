"""Reading distributed checkpoints without running what a pickle says.

PyTorch's reader unpickles `.metadata` and every entry that is no tensor, with all that a pickle may do. This one takes
the metadata as records that do nothing (see `cwm_core.model.weights.dcp`), makes PyTorch's own of them once they are
checked, and knows no entries but tensors, which PyTorch reads as weights only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from ..model.weights import dcp
from ..model.weights.stored import fill


def read_metadata(folder: Path, files: Collection[str]) -> Metadata:
    """What tensors `folder` has, and where in `files`.

    Raises OSError if `.metadata` cannot be read, and ValueError, naming it, if it is damaged, has an entry that is no
    tensor or a compressed one, or names another file.
    """
    file = folder / dcp.METADATA
    try:
        records = dcp.records(file)
        tensors = {dcp.to_text(name): _tensor(name, entry) for name, entry in records.state_dict_metadata.items()}
        places = dict(_place(index, info, files) for index, info in records.storage_data.items())
        for name, tensor in tensors.items():
            for chunk in tensor.chunks:
                if MetadataIndex(name, chunk.offsets) not in places:
                    raise ValueError(f"{name} is not in any file")
    except OSError:
        raise
    except Exception as error:  # a pickle can be wrong in nearly any way
        raise ValueError(f"{file} cannot be used: {error}") from None
    return Metadata(tensors, storage_data=places)


class Reader(FileSystemReader):
    """Reads tensors of a folder by metadata that `read_metadata` has checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        """Of `folder`, which is not read before PyTorch asks for tensors."""
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The checked metadata, in place of an unpickled file."""
        return self._metadata


def _tensor(name: str, entry: Any) -> TensorStorageMetadata:
    if not hasattr(entry, "chunks"):
        raise ValueError(f"{name} is not a tensor")
    dtype = entry.properties.args[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} is of no type that tensors have")
    shape = dcp.to_size(entry.size)
    boxes = [(dcp.to_size(chunk.offsets), dcp.to_size(chunk.sizes)) for chunk in entry.chunks]
    if not fill(shape, boxes):
        raise ValueError(f"the parts of {name} do not make {list(shape)}")
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), chunks)


def _place(index: Any, info: Any, files: Collection[str]) -> tuple[MetadataIndex, _StorageInfo]:
    name, place = dcp.to_text(index.fqn), dcp.to_text(info.relative_path)
    if place not in files:
        raise ValueError(f"{name} is in {place!r}, which is no file of the checkpoint")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{name} is compressed or otherwise transformed")
    offset, length = dcp.to_count(info.offset), dcp.to_count(info.length)
    return MetadataIndex(name, dcp.to_size(index.offset)), _StorageInfo(place, offset, length)
