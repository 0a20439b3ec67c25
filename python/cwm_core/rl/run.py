"""A run of reinforcement learning described by one TOML file.

    output = "runs/tiny/rl"       # gets the model, its vocabulary, metrics.jsonl, rollouts.jsonl and checkpoints/
    tokenizer = "vocabulary"      # vocabulary of the model

    [model]
    folder = "runs/tiny/sft"      # weights to start from

    [tasks.trace]                 # a task and its items; see `make_tasks`
    kind = "trace"
    items = "problems.jsonl"

    [[curriculum]]                # stages of the mixture; the first begins at step 0
    shares = { trace = 1.0 }
    # step = 1000, window = [0.1, 0.7]

    [data]
    seq_len = 1024                # tokens of a row, and so of the longest rollout
    batch_size = 16               # rows of a batch over all ranks; a step has [training] grad_accumulation batches

    [rollouts]                    # keys of `RolloutConfig`
    [generation]                  # keys of `GenerationConfig`
    [algorithm]                   # keys of `Algorithm`; max_length defaults to seq_len
    [loss]                        # keys of `LossConfig`
    [training]                    # keys of `TrainConfig`

Paths are relative to the current folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import torch

from .. import model as models
from ..model import ModelConfig, Transformer
from ..support.arguments import convert_fields
from ..tokenizer import Tokenizer
from ..training import Progress, TrainConfig, Trainer, TrainingEnd, World
from ..training.config import checked
from ..training.report import OnStep
from ..training.run import (
    RUN_KEYS,
    check_device,
    exclusive,
    in_table,
    initial_model,
    model_config,
    prepare_output,
    read_toml,
    reports,
    training_config,
)
from .algorithm import Algorithm
from .controller import RolloutConfig, RolloutLoader
from .exact import ExactSampler
from .generation import BackgroundGenerator, EpisodeGenerator, Generator, Sampler, Tasks
from .kinds import make_tasks
from .loss import LossConfig, PolicyLoss
from .processes import EngineSettings, ProcessSampler
from .tasks import Curriculum, Stage

Settings = TypeVar("Settings")

MODES = ("engine", "processes", "exact")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class GenerationConfig:
    """How rollouts are generated: the table `[generation]`.

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    mode: str = "engine"
    """"engine": an engine in this process, in turns with training; "processes": engines in other processes, while this
    one trains; or "exact": the forward pass of the trainer, whose log probabilities equal those of training bit for
    bit, at the price of a whole row for each token."""
    devices: str = "cpu"
    """Devices of the other processes, separated by commas, such as "cuda:1,cuda:2"; each gets a process."""
    dtype: str = "float32"
    """Type of the weights of the engine: "float32" or "bfloat16"."""
    max_batch: int = 64
    """Largest number of running sequences."""
    max_cache_bytes: int = 0
    """Largest size of the cache of keys and values; 0: no limit."""
    prefix_bytes: int = 0
    """Largest size of the copies of keys and values for later turns of an episode."""
    threads: int = 4
    """Threads that answer and score."""
    seed: int = 0
    """Seed of the samples and of the order of the items."""

    def __post_init__(self) -> None:
        """Check the values."""
        convert_fields(self)
        for name, choices in (("mode", MODES), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if min(self.max_batch, self.threads) < 1 or min(self.max_cache_bytes, self.prefix_bytes) < 0:
            raise ValueError("max_batch and threads must be positive, and sizes in bytes not negative")


@dataclass(frozen=True)
class RowsConfig:
    """Rows of a step: the table `[data]`."""

    seq_len: int = 1024
    """Tokens per row."""
    batch_size: int = 8
    """Rows per batch, over all ranks."""

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.seq_len, self.batch_size) < 1:
            raise ValueError(f"seq_len and batch_size must be positive, got {self.seq_len} and {self.batch_size}")


@dataclass(frozen=True)
class RLConfig:
    """One run, as its TOML file describes it."""

    output: Path
    """Folder for the model, its vocabulary, metrics, rollouts and checkpoints."""
    tokenizer: Path
    """Folder or file of the model's vocabulary."""
    model: dict[str, Any]
    """The table `[model]`, checked when the model is built."""
    tasks: dict[str, dict[str, Any]]
    """The tables `[tasks.NAME]`, checked when the tasks are made."""
    curriculum: list[Stage]
    """The tables `[[curriculum]]`."""
    training: TrainConfig
    """The table `[training]`."""
    algorithm: Algorithm
    """The table `[algorithm]`."""
    data: RowsConfig = field(default_factory=RowsConfig)
    """The table `[data]`."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """The table `[rollouts]`."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The table `[generation]`."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The table `[loss]`."""
    tensorboard: bool = False
    """Whether to write metrics to `output`/tensorboard too."""

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Self:
        """Read a file, then apply `overrides` such as "training.learning_rate=3e-6".

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is malformed, a key is missing or unknown, or a value has a wrong type. The message
                names file, table and key.
        """
        return read_toml(path, overrides, cls._from_dict)

    @classmethod
    def _from_dict(cls, values: dict[str, Any]) -> Self:
        tables = dict.fromkeys(("tasks", "rollouts", "generation", "algorithm", "loss"), dict)
        top = checked(values, {**RUN_KEYS, **tables, "curriculum": list})
        for key in ("output", "tokenizer", "model", "tasks", "curriculum", "training"):
            if key not in top:
                raise ValueError(f"{key!r} is missing")
        checked(top["tasks"], dict.fromkeys(top["tasks"], dict))
        data = _settings(RowsConfig, "data", top)
        top["algorithm"] = {"max_length": data.seq_len, **top.get("algorithm", {})}
        config = cls(
            output=Path(top["output"]),
            tokenizer=Path(top["tokenizer"]),
            model=top["model"],
            tasks=top["tasks"],
            curriculum=[_stage(entry) for entry in top["curriculum"]],
            training=training_config(top["training"], top["output"]),
            algorithm=_settings(Algorithm, "algorithm", top),
            data=data,
            rollouts=_settings(RolloutConfig, "rollouts", top),
            generation=_settings(GenerationConfig, "generation", top),
            loss=_settings(LossConfig, "loss", top),
            tensorboard=top.get("tensorboard", False),
        )
        if config.generation.mode == "exact" and data.batch_size != 1:
            raise ValueError('[generation] mode "exact" needs [data] batch_size = 1, and one process')
        return config


def run(config: RLConfig, on_step: OnStep | None = None) -> TrainingEnd:
    """Train as `config` says, resuming from the newest checkpoint in its output folder if there is one.

    Under torchrun, each process calls this function. Unless a signal ends the run, the output folder then holds the
    model in the layout of Hugging Face and the vocabulary. Each step appends its `Progress` to metrics.jsonl, and each
    rollout its outcome and its use to rollouts.jsonl; after a resume, those since the checkpoint appear again.

    Args:
        config: The run.
        on_step: Function called with the metrics of each step, in the main process only.

    Returns:
        The reason that the run ended.

    Raises:
        OSError: A file cannot be read or written.
        ValueError: The configuration cannot be run.
        BlockingIOError: Another run uses the output folder.
        RuntimeError: No group has anything to train on; see `RolloutLoader`.
        FloatingPointError: Loss or gradient is not finite.
    """
    tokenizer = Tokenizer.load(config.tokenizer)
    with in_table("training"):
        check_device(config.training.device)
        world = World.create(config.training)
    with world, exclusive(config.output, world):
        with in_table("model"):
            shape = model_config(config.model, tokenizer)
            if config.data.seq_len > shape.max_position_embeddings:
                raise ValueError(f"max_position_embeddings {shape.max_position_embeddings} is less than [data] seq_len")
        tasks, items = make_tasks(config.tasks, tokenizer)
        with in_table("curriculum"):
            sizes = {name: len(of_task) for name, of_task in items.items()}
            curriculum = Curriculum(sizes, config.curriculum, seed=config.generation.seed)
        prepare_output(config, shape, world)
        model = initial_model(config, shape, world)
        generator = _generator(config, shape, model, tasks, world)
        with (
            closing(generator),
            _rollout_log(config.output, world) as log,
            reports(config, on_step, world.is_main) as report,
        ):
            loader = RolloutLoader(
                model,
                generator,
                items=items,
                curriculum=curriculum,
                algorithm=config.algorithm,
                config=config.rollouts,
                world=world,
                seq_len=config.data.seq_len,
                batch_size=config.data.batch_size,
                batches=config.training.grad_accumulation,
                whole_rows=config.generation.mode == "exact",
                log=log,
            )

            def with_metrics(progress: Progress) -> None:
                if report:
                    report(replace(progress, metrics=loader.metrics | progress.metrics))

            objective = PolicyLoss(config.loss, world.device)
            reason = Trainer(model, loader, config.training, with_metrics, world, objective=objective).run()
        if reason is not TrainingEnd.SIGNAL:
            models.save(model, config.output, tokenizer)
    return reason


def _generator(config: RLConfig, shape: ModelConfig, model: Transformer, tasks: Tasks, world: World) -> Generator:
    settings = config.generation
    if settings.mode == "exact" and world.size > 1:
        raise ValueError('[generation] mode "exact" needs one process')
    engines = EngineSettings(
        shape,
        DTYPES[settings.dtype],
        settings.max_batch,
        config.data.seq_len,
        settings.max_cache_bytes or None,
        settings.prefix_bytes,
    )
    sampler: Sampler
    if settings.mode == "exact":
        sampler = ExactSampler(model, config.data.seq_len, config.training.dtype)
    elif settings.mode == "engine" and world.is_first_reader:
        sampler = engines.sampler(world.device)
    else:
        # Ranks that do not generate only help to gather the weights.
        devices = [device.strip() for device in settings.devices.split(",")] if world.is_first_reader else []
        writes = settings.mode == "processes" and world.is_main
        sampler = ProcessSampler(engines, devices, config.output / "weights", writes)
    generator = EpisodeGenerator(sampler, tasks, seed=settings.seed, threads=settings.threads)
    return BackgroundGenerator(generator) if settings.mode == "processes" else generator


@contextmanager
def _rollout_log(output: Path, world: World) -> Iterator[Any]:
    """Yield a function that appends a line to rollouts.jsonl, in the main process only."""
    if not world.is_main:
        yield None
        return
    with (output / "rollouts.jsonl").open("a", buffering=1, encoding="utf-8") as file:
        yield lambda entry: print(json.dumps(entry), file=file)


def _settings(kind: type[Settings], name: str, top: Mapping[str, Any]) -> Settings:
    """Return the dataclass of a table."""
    defaults = {key.name: key.default for key in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass
    types = {name: int if value is dataclasses.MISSING else type(value) for name, value in defaults.items()}
    with in_table(name):
        return kind(**checked(top.get(name, {}), types))


def _stage(entry: Any) -> Stage:
    with in_table("curriculum"):
        values = checked(entry, {"shares": dict, "step": int, "window": list})
        if "shares" not in values:
            raise ValueError("'shares' is missing")
        values["shares"] = checked(values["shares"], dict.fromkeys(values["shares"], float))
        if "window" in values:
            low, high = values["window"]
            values["window"] = float(low), float(high)
    return Stage(**values)
