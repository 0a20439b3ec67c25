"""A training run described by one TOML file: shards, a vocabulary and settings in, a model folder out.

    output = "runs/tiny"          # the model, its vocabulary, metrics.jsonl, and checkpoints/ to resume from
    tokenizer = "vocabulary"      # what the shards were written with
    tensorboard = false           # also write the metrics to output/tensorboard

    [model]
    preset = "tiny"               # or folder = "...", weights to start from, as of the stage before
    num_hidden_layers = 2         # changes to the preset: numbers of `ModelConfig`, and [model.rope_parameters]

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
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from .. import model as models
from ..data import Bucket, PackedLoader
from ..model import ModelConfig, RopeParameters, Transformer
from ..support.files import locked, write_file
from ..tokenizer import Tokenizer
from .checkpoint import latest
from .config import TrainConfig, checked, parse_overrides
from .metrics import Progress
from .parallel import parallelize
from .report import OnStep, write_jsonl, write_tensorboard
from .trainer import Trainer
from .world import World

RUN_KEYS = {"output": str, "tokenizer": str, "tensorboard": bool, "model": dict, "data": dict, "training": dict}


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
    tensorboard: bool = False

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
        top = checked(values, RUN_KEYS)
        for key in ("output", "tokenizer", "model", "data", "training"):
            if key not in top:
                raise ValueError(f"{key!r} is missing")
        output = Path(top["output"])
        with _table("training"):
            if "checkpoint_folder" in top["training"]:
                raise ValueError("checkpoint_folder cannot be set: it is the folder checkpoints in output")
            training = TrainConfig.from_dict(top["training"] | {"checkpoint_folder": str(output / "checkpoints")})
        data = _data_config(top["data"])
        return cls(output, Path(top["tokenizer"]), top["model"], data, training, top.get("tensorboard", False))


def run(config: RunConfig, on_step: OnStep | None = None) -> str:
    """Train as `config` says, from the newest checkpoint in its output folder if there is one.

    Started by torchrun, each of its processes calls this. Returns why it ended, as `Trainer.run`. Unless a signal ended
    it, the output folder then holds the model in Hugging Face's layout and the vocabulary. Each step adds a line to
    metrics.jsonl there, the fields of `Progress`; after a resume the steps since the checkpoint come again. `on_step`
    is called in the main process only.

    Raises OSError and ValueError for a configuration that cannot be run, BlockingIOError when another run uses the
    output folder, MemoryError when the device has too little memory, FloatingPointError as `Trainer.run`.
    """
    try:
        return _run(config, on_step)
    except RuntimeError as error:
        # On a CPU it has no type of its own.
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        reason = str(error).split(". ")[0]
        raise MemoryError(
            f"[training] the device {config.training.device!r} is out of memory: {reason}. Take fewer rows a step "
            "([data] batch_size, with grad_accumulation to make up for it), shorter rows (seq_len), or "
            'activation_checkpointing = "full"; `cwm plan` shows what a run needs'
        ) from error


def _run(config: RunConfig, on_step: OnStep | None) -> str:
    tokenizer = Tokenizer.load(config.tokenizer)
    with _table("training"):
        _check_device(config.training.device)
        world = World.create(config.training)
    with world, _exclusive(config.output, world):
        loader = PackedLoader(
            **vars(config.data), vocab_size=tokenizer, rank=world.data_rank, world_size=world.data_ranks
        )
        with _table("model"):
            shape = model_config(config.model, tokenizer)
            _check_rows(config.data, shape)
        _prepare_output(config, shape, world)
        model = _model(config, shape, world)
        with _reports(config, on_step if world.is_main else None, world.is_main) as report:
            reason = Trainer(model, loader, config.training, report, world).run()
        if reason != "signal":
            models.save(model, config.output, tokenizer)
    return reason


@contextmanager
def _reports(config: RunConfig, on_step: OnStep | None, is_main: bool) -> Iterator[OnStep | None]:
    """All that is told of each step, in the process that tells."""
    if not is_main:
        yield None
        return
    with ExitStack() as stack:
        listeners = [on_step] if on_step else []
        listeners.append(stack.enter_context(write_jsonl(config.output / "metrics.jsonl")))
        if config.tensorboard:
            listeners.append(stack.enter_context(write_tensorboard(config.output / "tensorboard")))

        def tell(progress: Progress) -> None:
            for listener in listeners:
                listener(progress)

        yield tell


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


def model_config(table: dict[str, Any], tokenizer: Tokenizer | None) -> ModelConfig:
    """The shape of the table [model]: a preset's, of the tokenizer's size, or a folder's, with the table's changes.

    Changes to a folder's are those that its weights fit as they are: `max_position_embeddings`, `rms_norm_eps` and
    [model.rope_parameters].
    """
    if ("preset" in table) == ("folder" in table):
        raise ValueError("either preset or folder must be given")
    if "folder" in table:
        start = models.read_config(checked({"folder": table["folder"]}, {"folder": str})["folder"])
        allowed = {"folder": str, "max_position_embeddings": int, "rms_norm_eps": float, "rope_parameters": dict}
        defaults: dict[str, Any] = {}
    else:
        start = models.preset(checked({"preset": table["preset"]}, {"preset": str})["preset"])
        kinds = (int, float, bool)
        sizes = {f.name: type(f.default) for f in dataclasses.fields(ModelConfig) if type(f.default) in kinds}
        allowed, defaults = {"preset": str, **sizes, "rope_parameters": dict}, _of_vocabulary(tokenizer)
    changes = checked(table, allowed)
    if "rope_parameters" in changes:
        rope = checked(
            changes["rope_parameters"], {f.name: type(f.default) for f in dataclasses.fields(RopeParameters)}
        )
        changes["rope_parameters"] = dataclasses.replace(start.rope_parameters, **rope)
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


def _with_vocabulary(config: ModelConfig, tokenizer: Tokenizer, folder: str | None) -> ModelConfig:
    """The configuration with the tokenizer's fingerprint; ValueError if the folder's model has another vocabulary."""
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


def _model(config: RunConfig, shape: ModelConfig, world: World) -> Transformer:
    """The model with the weights it starts from, divided over the ranks; in memory once."""
    with torch.device("meta"):
        model = Transformer(shape)
    with _table("training"):
        parallelize(model, config.training, world)
    if "folder" in config.model:
        models.load_into(model, config.model["folder"], world.device)
    else:
        models.initialize(model, config.training.seed, world.device)
    return model


@contextmanager
def _exclusive(output: Path, world: World) -> Iterator[None]:
    """Hold the output folder for this run; raise BlockingIOError on all ranks if another run holds it."""
    with ExitStack() as stack:
        failure: OSError | None = None
        if world.is_main:
            try:
                stack.enter_context(locked(output, "training run"))
            except OSError as error:
                failure = error
        if world.any(failure is not None):
            raise failure or BlockingIOError(f"{output} cannot be used by this run: see what the main rank says")
        yield


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # unknown to PyTorch; known, but not in this build
        raise ValueError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None


def _prepare_output(run: RunConfig, model: ModelConfig, world: World) -> None:
    """Note the model's shape in config.json when a run begins; raise ValueError when it resumes with another one."""
    file = run.output / "config.json"
    if latest(run.training.checkpoint_folder) is None:
        if world.is_main:
            run.output.mkdir(parents=True, exist_ok=True)
            write_file(file, json.dumps(model.to_hf(), indent=2) + "\n")
        return
    before = json.loads(file.read_text())
    known = before.pop("vocabulary_fingerprint", None)
    if None not in (known, model.vocabulary_fingerprint) and known != model.vocabulary_fingerprint:
        raise ValueError(
            f"{run.output} holds a run with another vocabulary (fingerprint {known}) than tokenizer "
            f"({model.vocabulary_fingerprint}): use the tokenizer of that run, or another output folder"
        )
    for key, value in dataclasses.replace(model, vocabulary_fingerprint=None).to_hf().items():
        # Training depends on the shape alone, not on which tokens begin and end a generation.
        if key not in ("bos_token_id", "eos_token_id") and before.get(key) != value:
            raise ValueError(f"{run.output} holds a run of a model with {key} = {before.get(key)}, not {value}")
