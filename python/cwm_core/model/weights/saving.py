"""Save a model to a folder that is always complete."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from torch import Tensor
from torch.distributed.tensor import DTensor

from ...support.files import sync
from ..config import ModelConfig
from ..transformer import Transformer
from . import dcp, huggingface, meta
from .layout import Layout, write_json
from .ranks import Ranks

if TYPE_CHECKING:
    from ...tokenizer import Tokenizer

Format = Literal["huggingface", "meta", "dcp"]

LAYOUTS: dict[str, type[Layout]] = {"huggingface": huggingface.HuggingFace, "meta": meta.Meta, "dcp": Layout}

# Files that mark the weights of a format as complete, and patterns of its weight files.
MARKERS = {
    "huggingface": (huggingface.WEIGHTS, huggingface.INDEX),
    "meta": (dcp.METADATA,),
    "dcp": (dcp.METADATA,),
}
WEIGHTS = {"huggingface": "model-*-of-*.safetensors", "meta": "__*_*.distcp", "dcp": "__*_*.distcp"}


MAX_SHARD_BYTES = 5 * 10**9


def save(
    model: Transformer,
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer | None = None,
    *,
    format: Format = "huggingface",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the model to a folder that `load` reads back bit for bit.

    A new folder appears only when it is complete. In an existing folder, weights of the same format are replaced and
    other files stay. After an interruption the folder holds the old weights, the new weights, or nothing that `load`
    accepts, never a mixture.

    If the model is sharded, call this function on all ranks, with a folder that all ranks see. If one rank fails, all
    raise. For "huggingface", tensors are gathered one at a time and rank 0 holds one file's worth of them in memory;
    for the other formats each rank writes its own shards.

    Args:
        model: The model, whole or sharded by `cwm_core.training.parallelize`.
        folder: Folder to write, made if it does not exist.
        tokenizer: Tokenizer to write beside the weights, as `Tokenizer.save` does: `cwm predict` and `cwm serve` need
            nothing else. Its stop tokens and first token go into the configuration if the model's has none.
        format: Layout of the folder.

            - "huggingface": `config.json` and safetensors, for transformers and vLLM.
            - "meta": `params.json` and a distributed checkpoint with Meta's names and row order, for the code released
              with CWM.
            - "dcp": `config.json` and a distributed checkpoint (`torch.distributed.checkpoint`) with the names of
              `Transformer` under `model`, for any number of processes.
        max_shard_bytes: Largest size of a safetensors file in bytes of weights; a larger tensor gets a file of its own.

    Raises:
        ValueError: The format is unknown, the weights are on the meta device, the tokenizer has more tokens than the
            model, or Meta's parameters cannot express the model.
        FileExistsError: The folder holds a model in another format.
    """
    if format not in get_args(Format):
        raise ValueError(f"format is {format!r}, expected one of {', '.join(get_args(Format))}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    layout, config = LAYOUTS[format](), _with_tokens(model.config, tokenizer)
    weights = _weights(model)
    values = layout.config_values(config, model.lm_head.weight.dtype)
    ranks = Ranks(sharded=any(isinstance(tensor, DTensor) for tensor in weights.values()))
    with _appearing_whole(Path(folder), format, ranks) as partial:
        ranks.once(lambda: write_json(partial / layout.config_file, values))
        if format == "huggingface":
            named = {layout.stored_name(name): tensor for name, tensor in weights.items()}
            huggingface.write(named, partial, max_shard_bytes, ranks)
        else:
            dcp.write(weights, partial, layout, config, ranks)
        if tokenizer is not None:
            ranks.once(lambda: tokenizer.save(partial))


def _with_tokens(config: ModelConfig, tokenizer: Tokenizer | None) -> ModelConfig:
    """Return the configuration with the tokenizer's stop tokens and first token where it has none."""
    if tokenizer is None:
        return config
    config.check_tokenizer(tokenizer)
    bos_token = tokenizer.bos_token if config.bos_token_id is None else config.bos_token_id
    stop_tokens = config.eos_token_id or tokenizer.stop_tokens
    return replace(
        config, eos_token_id=stop_tokens, bos_token_id=bos_token, vocabulary_fingerprint=tokenizer.fingerprint
    )


def _weights(model: Transformer) -> dict[str, Tensor]:
    """Return the parameters by name, a tied parameter once.

    For a sharded model these are the shards, even while FSDP has a layer gathered.
    """
    state = model.state_dict()
    weights = {name: state[name] for name, _ in model.named_parameters()}
    if any(tensor.is_meta for tensor in weights.values()):
        raise ValueError("the model is on the meta device and has no weights: call initialize or load_into first")
    return weights


@contextmanager
def _appearing_whole(folder: Path, format: Format, ranks: Ranks) -> Iterator[Path]:
    """Yield a temporary folder whose files move to `folder` if the block succeeds."""
    folder = folder.resolve()
    new, partial = ranks.once(lambda: _begin(folder, format))
    try:
        yield partial
        ranks.once(lambda: _finish(partial, folder, format, new))
    finally:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)


def _begin(folder: Path, format: Format) -> tuple[bool, Path]:
    """Make the temporary folder; return whether `folder` is new, and the path."""
    _refuse_other_formats(folder, format)
    new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = (folder.parent if new else folder) / f".{folder.name}-{os.getpid()}.partial"
    partial.mkdir()
    return new, partial


def _finish(partial: Path, folder: Path, format: Format, new: bool) -> None:
    # The mode that the umask gives to new files: the writers of weights may create private ones.
    mode = partial.stat().st_mode & 0o666
    for file in partial.iterdir():
        file.chmod(mode)
        sync(file)
    sync(partial)
    if new:
        partial.rename(folder)
    else:
        _replace(partial, folder, format)
    sync(folder)
    sync(folder.parent)


def _refuse_other_formats(folder: Path, format: Format) -> None:
    own = {*MARKERS[format], LAYOUTS[format].config_file}
    for file in (*sum(MARKERS.values(), ()), *(layout.config_file for layout in LAYOUTS.values())):
        if file not in own and (folder / file).exists():
            raise FileExistsError(
                f"{folder} has {file}, which belongs to another format than {format}: save to another folder"
            )


def _replace(partial: Path, folder: Path, format: Format) -> None:
    """Move the files, those that mark the folder as complete last.

    A single file that replaces a single file is never missing.
    """
    files = {file.name for file in partial.iterdir()}
    old = {file.name for file in folder.glob(WEIGHTS[format])}
    markers = [marker for marker in MARKERS[format] if (folder / marker).exists()]
    if markers != [huggingface.WEIGHTS] or huggingface.WEIGHTS not in files:
        for marker in markers:
            (folder / marker).unlink()
        sync(folder)
    for name in sorted(files, key=lambda name: name in MARKERS[format]):
        (partial / name).replace(folder / name)
    for name in old - files:
        (folder / name).unlink()
