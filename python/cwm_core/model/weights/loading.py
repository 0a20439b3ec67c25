"""Load a model from a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

from .. import sharding
from ..config import ModelConfig
from ..transformer import Transformer
from . import dcp, huggingface, meta
from .layout import Layout
from .stored import Stored

Shapes = dict[str, tuple[int, ...]]
Opener = Callable[[Shapes], dict[str, Stored]]


def load(
    folder: str | os.PathLike[str], device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """Return the model in a folder of any layout of docs/guides/weights.md.

    Weights are read from memory-mapped files one tensor at a time: at the peak, the model and one tensor are in memory.
    No file can run code.

    Args:
        folder: Folder of Hugging Face or Meta, or a distributed checkpoint with a `config.json`.
        device: Device of the model.
        dtype: Type of the weights. Defaults to the stored type.

    Raises:
        OSError: A file is missing or cannot be read.
        DamagedFileError: A file is damaged or names files outside the folder.
        ValueError: The folder has several layouts, its configuration describes another kind of model, or tensors are
            missing, unexpected, or of a wrong shape.
    """
    folder = Path(folder)
    layout, opener = _recognise(folder)
    model = _on_meta(layout.read_config(folder), folder / layout.config_file)
    for name, _, stored in _matched(model, folder, layout, opener):
        whole = layout.from_stored(name, stored.load(device, dtype), model.config)
        sharding.set_parameter(model, name, whole)
    _tie(model)
    return model


def read_config(folder: str | os.PathLike[str]) -> ModelConfig:
    """Return the configuration in a folder, whether or not the weights are there.

    Raises:
        OSError: The configuration cannot be read.
        ValueError: The configuration describes another kind of model.
    """
    folder = Path(folder)
    layout = meta.Meta() if (folder / meta.Meta.config_file).exists() else Layout()
    return layout.read_config(folder)


def load_into(model: Transformer, folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> None:
    """Fill `model` with the weights of a folder, each rank with its own shards if the model is sharded.

    Each rank reads the files independently and holds its shards and one tensor in memory. The folder's configuration
    is ignored, so the windows and rotary positions of `model` may differ.

    Args:
        model: Model to fill. Parameters keep their dtype.
        folder: Folder as in `load`.
        device: New device of parameters on the meta device. Other parameters stay where they are.

    Raises:
        OSError: A file is missing or cannot be read.
        DamagedFileError: A file is damaged or names files outside the folder.
        ValueError: The folder has several layouts, or tensors are missing, unexpected, or of a wrong shape.
    """
    folder = Path(folder)
    layout, opener = _recognise(folder)
    for name, parameter, stored in _matched(model, folder, layout, opener):
        place = device if parameter.is_meta else parameter.device
        box = sharding.part(parameter)
        if layout.in_order(name):
            local = stored.load(place, parameter.dtype, box)
        else:
            local = layout.from_stored(name, stored.load(place, parameter.dtype), model.config)[box].clone()
        sharding.set_parameter(model, name, local)
    _tie(model)


def _matched(
    model: Transformer, folder: Path, layout: Layout, opener: Opener
) -> Iterator[tuple[str, nn.Parameter, Stored]]:
    """Yield the parameters of `model` with their name and stored tensor, after checking that all are there."""
    parameters = {layout.stored_name(name): (name, tensor) for name, tensor in model.named_parameters()}
    shapes = {stored: tuple(tensor.shape) for stored, (_, tensor) in parameters.items()}
    stored = opener(shapes)
    if model.config.tie_word_embeddings:
        _check_output_is_embedding(stored, layout)
    _check(folder, stored, shapes, layout.ignored)
    for stored_name, (name, parameter) in parameters.items():
        yield name, parameter, stored[stored_name]


def _tie(model: Transformer) -> None:
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight


def _recognise(folder: Path) -> tuple[Layout, Opener]:
    """Return the layout of a folder and a function that finds its tensors."""
    has_config, has_params = (folder / "config.json").exists(), (folder / "params.json").exists()
    has_metadata = (folder / dcp.METADATA).exists()
    has_safetensors = any((folder / file).exists() for file in (huggingface.WEIGHTS, huggingface.INDEX))
    has_consolidated = bool(meta.consolidated_files(folder))
    if has_config and has_params:
        raise ValueError(f"{folder} has both config.json and params.json: keep the files of one layout")
    if has_metadata and (has_safetensors or has_consolidated):
        raise ValueError(f"{folder} has a distributed checkpoint and other weights: keep the files of one layout")
    if has_metadata and (has_config or has_params):
        return (meta.Meta() if has_params else Layout()), lambda _: dcp.tensors(folder)
    if has_config and has_safetensors:
        return huggingface.HuggingFace(), lambda _: huggingface.tensors(folder)
    if has_params and has_consolidated:
        return meta.Meta(), partial(meta.tensors, folder)
    raise FileNotFoundError(
        f"{folder} has no model: config.json or params.json, and beside it {huggingface.WEIGHTS}, {huggingface.INDEX}, "
        f"consolidated*.pth, consolidated*.safetensors or {dcp.METADATA}"
    )


def _on_meta(config: ModelConfig, file: Path) -> Transformer:
    try:
        with torch.device("meta"):
            return Transformer(config)
    except (TypeError, RuntimeError, OverflowError) as error:  # sizes that are not integers, or too large
        raise ValueError(f"{file} describes a model that cannot be built: {error}") from None


def _check(folder: Path, stored: dict[str, Stored], shapes: Shapes, ignored: frozenset[str]) -> None:
    missing = [name for name in shapes if name not in stored]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]} {list(shapes[missing[0]])}")
    for name, tensor in stored.items():
        file = tensor.parts[0].file
        if name in shapes and tensor.shape != shapes[name]:
            raise ValueError(f"{file}: {name} is {list(tensor.shape)}, expected {list(shapes[name])}")
        if name not in shapes and name not in ignored:
            raise ValueError(f"{file}: {name} {list(tensor.shape)} is unexpected, the model has no such tensor")


def _check_output_is_embedding(stored: dict[str, Stored], layout: Layout) -> None:
    """Drop the stored output layer of a tied model; raise ValueError if it differs from the embedding."""
    embedding = stored.get(layout.stored_name("embed_tokens.weight"))
    output = stored.pop(layout.stored_name("lm_head.weight"), None)
    if output is None or embedding is None:
        return
    if output.shape != embedding.shape or not torch.equal(output.load("cpu", None), embedding.load("cpu", None)):
        raise ValueError(
            f"{output.parts[0].file}: the output layer differs from the embedding, although config.json ties them"
        )
