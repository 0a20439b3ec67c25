"""Folders of Hugging Face: `config.json`, and `model.safetensors` or several files with an index."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..._native import DamagedFileError
from ...support.jsonl import read_object
from .. import sharding
from .layout import Layout, write_json
from .ranks import Ranks
from .stored import Stored, safetensors_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class HuggingFace(Layout):
    """Layout with the parameter names of `CwmForCausalLM`."""

    def stored_name(self, name: str) -> str:
        """Return the name with the prefix `model.`, which all parameters but the output layer have."""
        return name if name.startswith("lm_head.") else f"model.{name}"


def tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a folder by name.

    Raises:
        OSError: A file cannot be read.
        DamagedFileError: A file is damaged, or the index names files outside the folder or disagrees with the files.
        ValueError: The folder has both a single file and an index.
    """
    if (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        raise ValueError(f"{folder} has both {WEIGHTS} and {INDEX}: delete the outdated one")
    if not (folder / INDEX).exists():
        return safetensors_file(folder / WEIGHTS)
    index = read_object(folder / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise DamagedFileError(f"{folder / INDEX} has no weight_map from names of tensors to names of files")
    stored: dict[str, Stored] = {}
    for file in sorted(set(files.values())):
        if not is_plain_name(file):
            raise DamagedFileError(f"{folder / INDEX} names {file!r}, which is not a file directly in its folder")
        for name, tensor in safetensors_file(folder / file).items():
            if files.get(name) != file:
                place = f"in {files[name]}" if name in files else "nowhere"
                raise DamagedFileError(f"{folder / file} holds {name}, which {INDEX} has {place}")
            stored[name] = tensor
    for name, file in files.items():
        if name not in stored:
            raise DamagedFileError(f"{folder / file} lacks {name}, which {INDEX} has there")
    return stored


def is_plain_name(file: str) -> bool:
    """Return whether `file` names a file directly in a folder on any operating system."""
    return file not in ("", ".", "..") and not set(file) & {"/", "\\", ":", "\0"}


def write(weights: dict[str, Tensor], folder: Path, max_shard_bytes: int, ranks: Ranks) -> None:
    """Write `weights`, by stored name, to one file, or to several if they exceed `max_shard_bytes`.

    Weights on a CPU are not copied. Of weights on another device or sharded over `ranks`, one file's worth is copied at
    a time.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + _bytes(tensor) > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += _bytes(tensor)
    if len(shards) == 1:
        _write_file(weights, folder / WEIGHTS, ranks)
        return
    files: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(shard, folder / file, ranks)
        files |= dict.fromkeys(shard, file)
    total = {"total_size": sum(_bytes(tensor) for tensor in weights.values())}
    ranks.once(lambda: write_json(folder / INDEX, {"metadata": total, "weight_map": files}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of the whole tensor


def _write_file(shard: dict[str, Tensor], file: Path, ranks: Ranks) -> None:
    gathered = {}
    for name, tensor in shard.items():
        whole = sharding.whole(tensor)  # on every rank, and dropped at once on all but the first
        if ranks.first:
            gathered[name] = whole.cpu().contiguous()
    ranks.once(lambda: save_file(gathered, file, {"format": "pt"}))
