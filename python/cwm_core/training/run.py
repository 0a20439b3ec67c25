"""A training run described by one TOML file.

    output = "runs/tiny"          # gets the model, its vocabulary, metrics.jsonl and checkpoints/
    tokenizer = "vocabulary"      # vocabulary that the shards were written with
    tensorboard = false           # true: write metrics to output/tensorboard too

    [model]
    preset = "tiny"               # or folder = "...": weights to start from
    num_hidden_layers = 2         # changes of the preset: keys of `ModelConfig`

    [data]
    seq_len = 1024                # and batch_size, seed, epochs, packing, lookahead as in `PackedLoader`
    mask = { context = 1 }        # share of spans to leave out of the loss, by label
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
import logging
import os
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch

from .. import model as models
from ..data import Bucket, PackedLoader
from ..model import ModelConfig, RopeParameters, Transformer
from ..support.files import locked, write_file
from ..support.jsonl import read_object
from ..tokenizer import Tokenizer
from .calibration import settle_dtype
from .checkpoint import latest
from .checks import corpus_warnings
from .config import TrainConfig, checked, parse_overrides
from .metrics import Progress
from .parallel import parallelize
from .report import OnStep, write_jsonl, write_tensorboard
from .trainer import Trainer, TrainingEnd
from .world import World

logger = logging.getLogger(__name__)

T = TypeVar("T")

RUN_KEYS = {"output": str, "tokenizer": str, "tensorboard": bool, "model": dict, "data": dict, "training": dict}


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


@dataclass(frozen=True)
class DataConfig:
    """Data of a run: the table `[data]`, arguments of `PackedLoader`."""

    sources: dict[str, tuple[str, float] | tuple[str, float, int]]
    """Sources by name: folder of shards, share of the tokens, and epochs unless those of the table apply."""
    seq_len: int = 1024
    """Tokens per row."""
    batch_size: int = 8
    """Rows per batch, over all ranks."""
    seed: int = 0
    """Seed of the order of documents."""
    epochs: int | None = None
    """Passes over each source without a number of its own; None: endless."""
    packing: str = "best_fit"
    """How documents fill rows: "best_fit" or "stream"."""
    lookahead: int = 65_536
    """Documents among which the packer chooses."""
    buckets: list[Bucket] | None = None
    """Groups of documents by length, each with rows of its own; None: one group."""
    mask: dict[str, float] = field(default_factory=dict)
    """Share of spans to leave out of the loss, by label."""


@dataclass(frozen=True)
class RunConfig:
    """One run, as its TOML file describes it."""

    output: Path
    """Folder for the model, its vocabulary, metrics and checkpoints."""
    tokenizer: Path
    """Folder or file of the vocabulary that the shards were written with."""
    model: dict[str, Any]
    """The table `[model]`, checked when the model is built."""
    data: DataConfig
    """The table `[data]`."""
    training: TrainConfig
    """The table `[training]`."""
    tensorboard: bool = False
    """Whether to write metrics to `output`/tensorboard too."""

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Self:
        """Read a file, then apply `overrides` such as "training.learning_rate=3e-4".

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is malformed, a key is missing or unknown, or a value has a wrong type. The message
                names file, table and key.
        """
        return read_toml(path, overrides, cls._from_dict)

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        top = checked(values, RUN_KEYS)
        for key in ("output", "tokenizer", "model", "data", "training"):
            if key not in top:
                raise ValueError(f"{key!r} is missing")
        training, data = training_config(top["training"], top["output"]), _data_config(top["data"])
        paths = Path(top["output"]), Path(top["tokenizer"])
        return cls(*paths, top["model"], data, training, top.get("tensorboard", False))


def read_toml(path: str | os.PathLike[str], overrides: Iterable[str], build: Callable[[dict[str, Any]], T]) -> T:
    """Return what `build` makes of the values of a TOML file with `overrides` such as "training.learning_rate=3e-4".

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is malformed, or `build` raised ValueError. The message begins with the path.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        for key, value in parse_overrides(overrides).items():
            _set(values, key, value)
        return build(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def training_config(values: dict[str, Any], output: str) -> TrainConfig:
    """Return the settings of the table `[training]` of a run with this output folder."""
    with in_table("training"):
        if "checkpoint_folder" in values:
            raise ValueError("checkpoint_folder cannot be set: checkpoints go to the folder checkpoints in output")
        return TrainConfig.from_dict(values | {"checkpoint_folder": str(Path(output) / "checkpoints")})


class RunSettings(Protocol):
    """Settings that supervised training and reinforcement learning share."""

    @property
    def output(self) -> Path:
        """See `RunConfig`."""
        ...

    @property
    def model(self) -> dict[str, Any]:
        """See `RunConfig`."""
        ...

    @property
    def training(self) -> TrainConfig:
        """See `RunConfig`."""
        ...

    @property
    def tensorboard(self) -> bool:
        """See `RunConfig`."""
        ...


def run(
    config: RunConfig,
    on_step: OnStep | None = None,
    on_warning: Callable[[str], None] = _warn,
    on_note: Callable[[str], None] = logger.info,
) -> TrainingEnd:
    """Train as `config` says, resuming from the newest checkpoint in its output folder if there is one.

    Under torchrun, each process calls this function. Unless a signal ends the run, the output folder then holds the
    model in the layout of Hugging Face and the vocabulary. Each step appends its `Progress` to metrics.jsonl; after a
    resume, the steps since the checkpoint appear again.

    Args:
        config: The run.
        on_step: Function called with the metrics of each step, in the main process only.
        on_warning: Function called with each warning about the data, in the main process only; by default the warning
            is a `UserWarning`.
        on_note: Function called with one line about each choice that the run makes, in the main process only; by
            default the line is logged.

    Returns:
        The reason that the run ended.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The configuration cannot be run.
        BlockingIOError: Another run uses the output folder.
        MemoryError: The device has too little memory.
        FloatingPointError: Loss or gradient is not finite.
    """
    try:
        return _run(config, on_step, on_warning, on_note)
    except RuntimeError as error:
        # On a CPU, running out of memory is a plain RuntimeError.
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        reason = str(error).split(". ")[0]
        raise MemoryError(
            f"[training] the device {config.training.device!r} is out of memory: {reason}. Use fewer rows per step "
            "([data] batch_size, with a larger grad_accumulation), shorter rows (seq_len), or "
            'activation_checkpointing = "full"; `cwm plan` estimates the memory of a run'
        ) from error


def _run(
    config: RunConfig, on_step: OnStep | None, on_warning: Callable[[str], None], on_note: Callable[[str], None]
) -> TrainingEnd:
    tokenizer = Tokenizer.load(config.tokenizer)
    with in_table("training"):
        check_device(config.training.device)
        world = World.create(config.training)
    with world, exclusive(config.output, world):
        loader = PackedLoader(
            **vars(config.data), vocab_size=tokenizer, rank=world.data_rank, world_size=world.data_ranks
        )
        with in_table("model"):
            shape = model_config(config.model, tokenizer)
            _check_rows(config.data, shape)
        prepare_output(config, shape, world)
        for text in corpus_warnings(config.data) if world.is_main else ():
            on_warning(text)
        config = dataclasses.replace(config, training=settle_dtype(config.training, shape, loader, world, on_note))
        model = initial_model(config, shape, world)
        with reports(config, on_step if world.is_main else None, world.is_main) as report:
            reason = Trainer(model, loader, config.training, report, world).run()
        if reason is not TrainingEnd.SIGNAL:
            models.save(model, config.output, tokenizer)
    return reason


@contextmanager
def reports(config: RunSettings, on_step: OnStep | None, is_main: bool) -> Iterator[OnStep | None]:
    """Yield a function that reports a step to all outputs, in the main process only."""
    if not is_main:
        yield None
        return
    with ExitStack() as stack:
        listeners = [on_step] if on_step else []
        listeners.append(stack.enter_context(write_jsonl(config.output / "metrics.jsonl")))
        if config.tensorboard:
            listeners.append(stack.enter_context(write_tensorboard(config.output / "tensorboard")))

        def report(progress: Progress) -> None:
            for listener in listeners:
                listener(progress)

        yield report


@contextmanager
def in_table(name: str) -> Iterator[None]:
    """Prefix the message of a ValueError with the name of the table."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value at a dotted key such as "training.max_steps"."""
    *tables, key = dotted.split(".")
    for name in tables:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ValueError(f"{dotted} cannot be set: {name} is not a table")
    values[key] = value


def _data_config(table: dict[str, Any]) -> DataConfig:
    numbers = dict.fromkeys(("seq_len", "batch_size", "seed", "epochs", "lookahead"), int)
    with in_table("data"):
        values = checked(table, {"sources": dict, **numbers, "packing": str, "buckets": list, "mask": dict})
        for key in ("sources", "seq_len"):
            if not values.get(key):
                raise ValueError(f"{key!r} is missing")
        checked(values["sources"], dict.fromkeys(values["sources"], dict))
    sources = {}
    for name, entry in values["sources"].items():
        with in_table(f"data.sources.{name}"):
            source = checked(entry, {"folder": str, "share": float, "epochs": int})
            if "folder" not in source:
                raise ValueError("'folder' is missing")
            own_epochs = (source["epochs"],) if "epochs" in source else ()
            sources[name] = (source["folder"], source.get("share", 1.0), *own_epochs)
    with in_table("data.mask"):
        mask = checked(values.get("mask", {}), dict.fromkeys(values.get("mask", {}), float))
    buckets = [_bucket(entry) for entry in values.get("buckets", [])]
    return DataConfig(**values | {"sources": sources, "mask": mask, "buckets": buckets or None})


def _bucket(entry: dict[str, Any]) -> Bucket:
    with in_table("data.buckets"):
        values = checked(entry, {field.name: int for field in dataclasses.fields(Bucket)})
        if "batch_size" not in values:
            raise ValueError("'batch_size' is missing")
    return Bucket(**{"max_length": None, **values})


def model_keys() -> tuple[str, ...]:
    """Return the keys of `[model]` that change a preset: the numbers, flags and strings of `ModelConfig`."""
    return tuple(f.name for f in dataclasses.fields(ModelConfig) if type(f.default) in (int, float, bool, str))


def model_config(table: dict[str, Any], tokenizer: Tokenizer | None) -> ModelConfig:
    """Return the model configuration of the table `[model]`.

    The table names a preset, which takes the size of the tokenizer's vocabulary, or a folder. Weights of a folder allow
    changes of `max_position_embeddings`, `rms_norm_eps` and `[model.rope_parameters]` only.
    """
    if ("preset" in table) == ("folder" in table):
        raise ValueError("either preset or folder must be given")
    if "folder" in table:
        start = models.read_config(checked({"folder": table["folder"]}, {"folder": str})["folder"])
        allowed = {"folder": str, "max_position_embeddings": int, "rms_norm_eps": float, "rope_parameters": dict}
        defaults: dict[str, Any] = {}
    else:
        start = models.preset(checked({"preset": table["preset"]}, {"preset": str})["preset"])
        kinds = {f.name: type(f.default) for f in dataclasses.fields(ModelConfig) if f.name in model_keys()}
        allowed, defaults = {"preset": str, **kinds, "rope_parameters": dict}, _of_vocabulary(tokenizer)
    changes = checked(table, allowed)
    if "rope_parameters" in changes:
        changes["rope_parameters"] = _rope(start.rope_parameters, changes["rope_parameters"])
    vocab_size = (defaults | changes).get("vocab_size", start.vocab_size)
    if tokenizer and vocab_size < tokenizer.vocab_size:
        raise ValueError(f"vocab_size {vocab_size} is less than the tokenizer's {tokenizer.vocab_size}")
    if "folder" in table:
        config = dataclasses.replace(start, **{key: value for key, value in changes.items() if key != "folder"})
    else:
        config = models.preset(changes.pop("preset"), **defaults | changes)
    if tokenizer:
        config = _with_vocabulary(config, tokenizer, table.get("folder"))
    return config


def _rope(start: RopeParameters, table: dict[str, Any]) -> RopeParameters:
    """Return `start` with the changes of the table `[model.rope_parameters]`."""
    kinds = {f.name: float if f.default is None else type(f.default) for f in dataclasses.fields(RopeParameters)}
    changes = checked(table, kinds)
    rope = dataclasses.replace(start, **changes)
    for name, value in changes.items():
        if getattr(rope, name) != value:
            raise ValueError(f"rope_parameters.{name} = {value} has no effect with rope_type {rope.rope_type!r}")
    return rope


def _with_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: str | None) -> ModelConfig:
    """Return the configuration with the tokenizer's fingerprint.

    Raises:
        ValueError: The model in the folder has another vocabulary.
    """
    known = config.vocabulary_fingerprint
    if folder and known is None and (Path(folder) / "tokenizer.json").exists():
        known = Tokenizer.load(folder).fingerprint
    if known not in (None, tokenizer.fingerprint):
        raise ValueError(
            f"folder {folder} holds a model of another vocabulary (fingerprint {known}) than tokenizer "
            f"({tokenizer.fingerprint}): use the tokenizer that the model was trained with"
        )
    return dataclasses.replace(config, vocabulary_fingerprint=tokenizer.fingerprint)


def _check_rows(data: DataConfig, shape: ModelConfig) -> None:
    rows = [data.seq_len, *(bucket.seq_len for bucket in data.buckets or () if bucket.seq_len)]
    if max(rows) > shape.max_position_embeddings:
        raise ValueError(
            f"max_position_embeddings {shape.max_position_embeddings} is less than the {max(rows)} tokens of a row "
            "([data] seq_len): make the rows shorter, or set max_position_embeddings to at least that"
        )


def _of_vocabulary(tokenizer: Tokenizer | None) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    return {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.stop_tokens,
        "bos_token_id": tokenizer.bos_token,
    }


def initial_model(config: RunSettings, shape: ModelConfig, world: World) -> Transformer:
    """Return the model with its initial weights, sharded over the ranks."""
    with torch.device("meta"):
        model = Transformer(shape)
    with in_table("training"):
        parallelize(model, config.training, world)
    if "folder" in config.model:
        models.load_into(model, config.model["folder"], world.device)
    else:
        models.initialize(model, config.training.seed, world.device, config.training.initialization)
    return model


@contextmanager
def exclusive(output: Path, world: World) -> Iterator[None]:
    """Hold the output folder for this run; raise BlockingIOError on all ranks if another run holds it."""
    with ExitStack() as stack:
        failure: OSError | None = None
        if world.is_main:
            try:
                stack.enter_context(locked(output, "training run"))
            except OSError as error:
                failure = error
        if world.any(failure is not None):
            raise failure or BlockingIOError(f"this run cannot use {output}: see the message of rank 0")
        yield


def check_device(device: str) -> None:
    """Raise ValueError if PyTorch cannot use a device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown device; known, but not in this build
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def prepare_output(run: RunSettings, model: ModelConfig, world: World) -> None:
    """Write config.json when a run begins; raise ValueError when it resumes with another shape or vocabulary."""
    file = run.output / "config.json"
    if not run.training.checkpoint_folder or latest(run.training.checkpoint_folder) is None:
        if world.is_main:
            run.output.mkdir(parents=True, exist_ok=True)
            write_file(file, json.dumps(model.to_hf(), indent=2) + "\n")
        return
    before = read_object(file)
    known = before.pop("vocabulary_fingerprint", None)
    if None not in (known, model.vocabulary_fingerprint) and known != model.vocabulary_fingerprint:
        raise ValueError(
            f"{run.output} holds a run with another vocabulary (fingerprint {known}) than tokenizer "
            f"({model.vocabulary_fingerprint}): use the tokenizer of that run, or another output folder"
        )
    for key, value in dataclasses.replace(model, vocabulary_fingerprint=None).to_hf().items():
        # Training does not depend on the tokens that begin and end a generation.
        if key not in ("bos_token_id", "eos_token_id") and before.get(key) != value:
            raise ValueError(f"{run.output} holds a run of a model with {key} = {before.get(key)}, not {value}")
