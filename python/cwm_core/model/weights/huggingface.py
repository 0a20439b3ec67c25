"""Hugging Face's folder: config.json, and model.safetensors or shards of it with an index of what is where."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .. import sharding
from .layout import Layout, read_json, write_json
from .ranks import Ranks
from .stored import Stored, safetensors_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class HuggingFace(Layout):
    """The names of `CwmForCausalLM`."""

    def stored_name(self, name: str) -> str:
        """All but the output layer belong to a part called `model`."""
        return name if name.startswith("lm_head.") else f"model.{name}"


def tensors(folder: Path) -> dict[str, Stored]:
    """The tensors of a folder by name.

    Raises OSError for a file that cannot be read, ValueError for a damaged one, and for an index that names files
    outside the folder or disagrees with what the files hold.
    """
    if (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        raise ValueError(f"{folder} has both {WEIGHTS} and {INDEX}, one of them left over: delete it")
    if not (folder / INDEX).exists():
        return safetensors_file(folder / WEIGHTS)
    index = read_json(folder / INDEX)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{folder / INDEX} has no weight_map from names of tensors to names of files")
    stored: dict[str, Stored] = {}
    for file in sorted(set(files.values())):
        if not is_plain_name(file):
            raise ValueError(f"{folder / INDEX} names {file!r}, which is not a file directly in its folder")
        for name, tensor in safetensors_file(folder / file).items():
            if files.get(name) != file:
                place = f"in {files[name]}" if name in files else "nowhere"
                raise ValueError(f"{folder / file} holds {name}, which {INDEX} has {place}")
            stored[name] = tensor
    for name, file in files.items():
        if name not in stored:
            raise ValueError(f"{folder / file} lacks {name}, which {INDEX} has there")
    return stored


def is_plain_name(file: str) -> bool:
    """Whether `file` names something directly in a folder, on any system."""
    return file not in ("", ".", "..") and not set(file) & {"/", "\\", ":", "\0"}


def write(weights: dict[str, Tensor], folder: Path, max_shard_bytes: int, ranks: Ranks) -> None:
    """Write `weights`, by stored name: one file if they fit, else shards, each with at least one tensor.

    Weights on a CPU are written from where they are; of those on another device, or sharded over `ranks`, a shard at a
    time is copied.
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
    files = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(shard, folder / file, ranks)
        files |= dict.fromkeys(shard, file)
    total = {"total_size": sum(_bytes(tensor) for tensor in weights.values())}
    ranks.once(lambda: write_json(folder / INDEX, {"metadata": total, "weight_map": files}))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # of all shards


def _write_file(shard: dict[str, Tensor], file: Path, ranks: Ranks) -> None:
    gathered = {}
    for name, tensor in shard.items():
        whole = sharding.whole(tensor)  # on every rank, and dropped at once on all but the first
        if ranks.first:
            gathered[name] = whole.cpu().contiguous()
    ranks.once(lambda: save_file(gathered, file, {"format": "pt"}))
