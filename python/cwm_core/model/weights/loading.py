"""From a folder to a model that is in memory once."""

from __future__ import annotations

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


def load(folder: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """Read the model of a folder: Hugging Face's or Meta's layout, or a distributed checkpoint with a config.json.

    Weights are read from memory-mapped files one tensor at a time and become the model's own, on `device` and of type
    `dtype`, None for the stored one: in memory are the model and a tensor. No file can run code.

    Raises OSError for a file that is missing or cannot be read, and ValueError, naming file and tensor, for a folder
    of no or several known layouts, a configuration of another model, files that are damaged or name files outside the
    folder, and tensors missing, unexpected, or of a wrong shape.
    """
    folder = Path(folder)
    layout, opener = _recognise(folder)
    model = _on_meta(layout.read_config(folder), folder / layout.config_file)
    for name, _, stored in _matched(model, folder, layout, opener):
        whole = layout.from_stored(name, stored.load(device, dtype), model.config)
        sharding.set_parameter(model, name, whole)
    _tie(model)
    return model


def read_config(folder: str | Path) -> ModelConfig:
    """The configuration in a folder that `load` knows, whether or not the weights are there yet.

    Raises OSError where there is none, and ValueError for one of another model.
    """
    folder = Path(folder)
    layout = meta.Meta() if (folder / meta.Meta.config_file).exists() else Layout()
    return layout.read_config(folder)


def load_into(model: Transformer, folder: str | Path, device: str | torch.device = "cpu") -> None:
    """Give `model` the weights of a folder as `load` knows them, each rank its own part where the model is sharded.

    Parameters on the meta device come to be on `device`, others are overwritten where they are; types stay the model's.
    Each rank reads by itself from memory-mapped files: in memory are its parts and a tensor. Of the folder's
    configuration nothing is taken, so that windows or rotary positions can be other than they were.

    Raises as `load`; a model of other sizes has tensors missing, unexpected, or of a wrong shape.
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
    """The parameters of `model` by name, each with what a folder has of it; all of them are found before the first."""
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
    """Which layout a folder has, and what finds its tensors."""
    has_config, has_params = (folder / "config.json").exists(), (folder / "params.json").exists()
    has_metadata = (folder / dcp.METADATA).exists()
    has_safetensors = any((folder / file).exists() for file in (huggingface.WEIGHTS, huggingface.INDEX))
    has_consolidated = bool(meta.consolidated_files(folder))
    if has_config and has_params:
        raise ValueError(f"{folder} has both config.json and params.json: it must be of one layout")
    if has_metadata and (has_safetensors or has_consolidated):
        raise ValueError(f"{folder} has a distributed checkpoint and other weights: it must be of one layout")
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
    except (TypeError, RuntimeError, OverflowError) as error:  # sizes that are no integers, or past what there can be
        raise ValueError(f"{file} describes no model that can be built: {error}") from None


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
    """Take out the output layer that some write although it is the embedding."""
    embedding = stored.get(layout.stored_name("embed_tokens.weight"))
    output = stored.pop(layout.stored_name("lm_head.weight"), None)
    if output is None or embedding is None:
        return
    if output.shape != embedding.shape or not torch.equal(output.load("cpu", None), embedding.load("cpu", None)):
        raise ValueError(f"{output.parts[0].file}: the output layer is not the embedding, as the model has it")
