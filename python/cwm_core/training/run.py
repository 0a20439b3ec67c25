"""A training run described by one TOML file: shards, a vocabulary and settings in, a model folder out.

    output = "runs/tiny"          # the model, its vocabulary, metrics.jsonl, and checkpoints/ to resume from
    tokenizer = "vocabulary"      # what the shards were written with

    [model]
    preset = "tiny"               # or folder = "...", weights to start from
    layers = 2                    # changes to the preset: numbers of `ModelConfig`, and [model.rope]

    [data]
    seq_len = 1024                # also batch_size, seed, epochs, packing, lookahead, as in `PackedLoader`
    mask = { context = 1 }        # by label of spans, the part of them to leave out of the loss
    # buckets = [{ max_length = 512, batch_size = 8, seq_len = 512, global_window = 256 }, { batch_size = 4 }]
    sources.traces = { folder = "shards/traces", share = 0.3, epochs = 4 }
    sources.code = { folder = "shards/code", share = 0.7 }

    [training]                    # keys of `TrainConfig`
    max_steps = 1000

Paths are relative to the current folder.
"""

from __future__ import annotations

import dataclasses
import json
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch

from .. import model as models
from ..data import Bucket, PackedLoader
from ..model import ModelConfig, RopeConfig, Transformer
from ..tokenizer import Tokenizer
from .checkpoint import latest
from .config import TrainConfig, checked, parse_overrides
from .trainer import Progress, Trainer

OnStep = Callable[[Progress], None]

_LOG_SECONDS = 10.0  # between lines where there is no terminal to draw on


@dataclass(frozen=True)
class DataConfig:
    """What a run reads: arguments of `PackedLoader`."""

    sources: dict[str, tuple[str, float] | tuple[str, float, int]]
    """By name, a folder of shards, its share of the tokens, and its epochs if they are not those of all."""
    seq_len: int = 1024
    batch_size: int = 8
    seed: int = 0
    epochs: int | None = None
    packing: str = "best_fit"
    lookahead: int = 65_536
    buckets: list[Bucket] | None = None
    mask: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """One run, as its TOML file describes it."""

    output: Path
    tokenizer: Path
    model: dict[str, Any]
    """The table [model], checked when the model is made."""
    data: DataConfig
    training: TrainConfig

    @classmethod
    def from_toml(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a file, then apply `overrides` such as "training.learning_rate=3e-4".

        Raises OSError if it cannot be read, and ValueError for a malformed file, a missing or unknown key, or a value
        of a wrong type, naming file, table and key.
        """
        try:
            values = tomllib.loads(Path(path).read_text("utf-8"))
            for key, value in parse_overrides(overrides).items():
                _set(values, key, value)
            return cls._from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        top = checked(values, {"output": str, "tokenizer": str, "model": dict, "data": dict, "training": dict})
        for key in ("output", "tokenizer", "model", "data", "training"):
            if key not in top:
                raise ValueError(f"{key!r} is missing")
        output = Path(top["output"])
        with _table("training"):
            if "checkpoint_folder" in top["training"]:
                raise ValueError("checkpoint_folder cannot be set: it is the folder checkpoints in output")
            training = TrainConfig.from_dict(top["training"] | {"checkpoint_folder": str(output / "checkpoints")})
        return cls(output, Path(top["tokenizer"]), top["model"], _data_config(top["data"]), training)


def run(config: RunConfig, on_step: OnStep | None = None) -> str:
    """Train as `config` says, from the newest checkpoint in its output folder if there is one.

    Returns why it ended, as `Trainer.run`. Unless a signal ended it, the output folder then holds the model in Hugging
    Face's layout and the vocabulary. Each step adds a line to metrics.jsonl there, the fields of `Progress`; after a
    resume the steps since the checkpoint come again.

    Raises OSError and ValueError for a configuration that cannot be run, FloatingPointError as `Trainer.run`.
    """
    tokenizer = Tokenizer.load(config.tokenizer)
    loader = _loader(config.data, tokenizer)
    torch.manual_seed(config.training.seed)
    with _table("model"):
        model = _model(config.model, tokenizer)
    with _table("training"):
        _check_device(config.training.device)
    config.output.mkdir(parents=True, exist_ok=True)
    _check_same_model(config, model.config)
    with (config.output / "metrics.jsonl").open("a", buffering=1) as metrics:

        def log(progress: Progress) -> None:
            metrics.write(json.dumps(asdict(progress)) + "\n")
            if on_step:
                on_step(progress)

        reason = Trainer(model, loader, config.training, log).run()
    if reason != "signal":
        models.save(model, config.output)
        tokenizer.save(config.output)
    return reason


@contextmanager
def show_progress() -> Iterator[OnStep]:
    """A progress bar on standard error, or a line now and then where that is no terminal; gives what shows a step."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(BarColumn(), TextColumn("{task.description}"), console=console, refresh_per_second=2)
    task = bar.add_task("", total=1.0)
    last_line = -_LOG_SECONDS

    def show(progress: Progress) -> None:
        nonlocal last_line
        left = timedelta(seconds=round(progress.seconds * (1 / progress.fraction - 1)))
        text = (
            f"step {progress.step:,}  loss {progress.loss:.4f}  {progress.tokens_per_second:,.0f} tokens/s  "
            f"gradient norm {progress.grad_norm:.3f}  {left} left"
        )
        now = time.monotonic()
        if console.is_terminal:
            bar.update(task, completed=progress.fraction, description=text)
        elif now - last_line >= _LOG_SECONDS or progress.fraction >= 1:
            last_line = now
            print(text, file=console.file, flush=True)

    if not console.is_terminal:
        yield show
        return
    with bar:
        yield show


@contextmanager
def _table(name: str) -> Iterator[None]:
    """Say of a ValueError in which table it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value at a key such as "training.max_steps"."""
    *tables, key = dotted.split(".")
    for name in tables:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ValueError(f"{dotted} cannot be set: {name} is no table")
    values[key] = value


def _data_config(table: dict[str, Any]) -> DataConfig:
    numbers = dict.fromkeys(("seq_len", "batch_size", "seed", "epochs", "lookahead"), int)
    with _table("data"):
        values = checked(table, {"sources": dict, **numbers, "packing": str, "buckets": list, "mask": dict})
        for key in ("sources", "seq_len"):
            if not values.get(key):
                raise ValueError(f"{key!r} is missing")
        checked(values["sources"], dict.fromkeys(values["sources"], dict))
    sources = {}
    for name, entry in values["sources"].items():
        with _table(f"data.sources.{name}"):
            source = checked(entry, {"folder": str, "share": float, "epochs": int})
            if "folder" not in source:
                raise ValueError("'folder' is missing")
            own_epochs = (source["epochs"],) if "epochs" in source else ()
            sources[name] = (source["folder"], source.get("share", 1.0), *own_epochs)
    with _table("data.mask"):
        mask = checked(values.get("mask", {}), dict.fromkeys(values.get("mask", {}), float))
    buckets = [_bucket(entry) for entry in values.get("buckets", [])]
    return DataConfig(**values | {"sources": sources, "mask": mask, "buckets": buckets or None})


def _bucket(entry: dict[str, Any]) -> Bucket:
    with _table("data.buckets"):
        values = checked(entry, {field.name: int for field in dataclasses.fields(Bucket)})
        if "batch_size" not in values:
            raise ValueError("'batch_size' is missing")
    return Bucket(**{"max_length": None, **values})


def _loader(data: DataConfig, tokenizer: Tokenizer) -> PackedLoader:
    return PackedLoader(**vars(data), vocab_size=tokenizer)


def _model(table: dict[str, Any], tokenizer: Tokenizer) -> Transformer:
    """The model of the table [model]: from a preset, of the tokenizer's size, or from a folder as it is."""
    if ("preset" in table) == ("folder" in table):
        raise ValueError("either preset or folder must be given")
    if "folder" in table:
        model = models.load(checked(table, {"folder": str})["folder"])
    else:
        end = tokenizer.special_tokens.get("<|end_of_text|>")
        defaults = {"vocab_size": tokenizer.vocab_size, "stop_tokens": () if end is None else (end,)}
        model = Transformer(preset_config(table, defaults))
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(f"vocab_size {model.config.vocab_size} is less than the tokenizer's {tokenizer.vocab_size}")
    return model


def preset_config(table: dict[str, Any], defaults: dict[str, Any]) -> ModelConfig:
    """The shape that a table [model] with a preset gives: the preset's, then `defaults`, then the table's changes."""
    numbers = {f.name: type(f.default) for f in dataclasses.fields(ModelConfig) if type(f.default) in (int, float)}
    changes = checked(table, {"preset": str, **numbers, "rope": dict})
    if "rope" in changes:
        rope = checked(changes["rope"], {f.name: type(f.default) for f in dataclasses.fields(RopeConfig)})
        changes["rope"] = RopeConfig(**rope)
    return models.preset(changes.pop("preset"), **defaults | changes)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown to PyTorch; known, but not in this build
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _check_same_model(run: RunConfig, model: ModelConfig) -> None:
    """Note the model's shape in config.json when a run begins; raise ValueError when it resumes with another one."""
    file = run.output / "config.json"
    if latest(run.training.checkpoint_folder) is None:
        file.write_text(json.dumps(model.to_hf(), indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    for key, value in model.to_hf().items():
        if before.get(key) != value:
            raise ValueError(f"{run.output} holds a run of a model with {key} = {before.get(key)}, not {value}")
