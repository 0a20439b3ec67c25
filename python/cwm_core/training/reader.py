"""Read distributed checkpoints without unpickling.

PyTorch's reader unpickles `.metadata` and every entry that is not a tensor, without restrictions. This reader takes the
metadata as inert records (see `cwm_core.model.weights.dcp`), checks them, and converts them to PyTorch's classes. It
accepts only tensors, which PyTorch reads with `weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from .._native import DamagedFileError
from ..model.weights import dcp
from ..model.weights.stored import fill


def read_metadata(folder: Path, files: Collection[str]) -> Metadata:
    """Return the tensors of `folder` and their places in `files`.

    Raises:
        OSError: `.metadata` cannot be read.
        DamagedFileError: `.metadata` is damaged, has an entry that is compressed or not a tensor, or names another
            file.
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
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DamagedFileError(f"{file} is not usable: {error}") from None
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {**tensors}
    return Metadata(entries, storage_data=places)


class Reader(FileSystemReader):
    """Reads the tensors of a folder by metadata that `read_metadata` has checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        """Use `folder`, which is not read before PyTorch asks for tensors."""
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return the checked metadata instead of unpickling a file."""
        return self._metadata


def _tensor(name: str, entry: Any) -> TensorStorageMetadata:
    if not hasattr(entry, "chunks"):
        raise ValueError(f"{name} is not a tensor")
    dtype = entry.properties.args[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name} has no dtype")
    shape = dcp.to_size(entry.size)
    boxes = [(dcp.to_size(chunk.offsets), dcp.to_size(chunk.sizes)) for chunk in entry.chunks]
    if not fill(shape, boxes):
        raise ValueError(f"the parts of {name} do not make {list(shape)}")
    chunks = [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in boxes]
    return TensorStorageMetadata(TensorProperties(dtype), torch.Size(shape), chunks)


def _place(index: Any, info: Any, files: Collection[str]) -> tuple[MetadataIndex, _StorageInfo]:
    name, place = dcp.to_text(index.fqn), dcp.to_text(info.relative_path)
    if place not in files:
        raise ValueError(f"{name} is in {place!r}, which is not a file of the checkpoint")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"{name} is compressed or otherwise transformed")
    offset, length = dcp.to_count(info.offset), dcp.to_count(info.length)
    return MetadataIndex(name, dcp.to_size(index.offset)), _StorageInfo(place, offset, length)
