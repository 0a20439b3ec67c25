"""Train one model of an ablation, let it predict, and log what it scores."""

from __future__ import annotations

import copy
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import torch

from .. import model as models
from ..data import PackedLoader
from ..inference import Engine
from ..machines import Sandbox
from ..model import Transformer
from ..support.log import ResumableLog
from ..tokenizer import Tokenizer
from ..training import Progress, TrainConfig, Trainer, TrainingEnd
from .data import read_held_out, read_repairs
from .predict import Answers, predict_outputs, predict_repairs
from .recipe import ARMS, REPAIR_SETS, SETS, TRANSFERS, AblationRecipe, checkpoint_steps, form_of, how_to_ask, last_step

LOG = "log.jsonl"
_MAX_BATCH = 256
# Checkpoints of a training, from which a killed one resumes.
_CHECKPOINTS = 20


class ScoreKey(NamedTuple):
    """Key of a row of scores."""

    task: str
    """"outputs" for the model as trained; "transfer outputs" and "transfer repair" after fine-tuning."""
    step: int
    """Steps of training."""
    set: str
    """Set of held-out programs."""
    how: str
    """"direct", "trace", or "repair"."""


def score_keys(recipe: AblationRecipe, arm: str) -> Iterator[ScoreKey]:
    """Yield the keys of all scores of a model, in the order in which they are measured."""
    for step in checkpoint_steps(recipe, arm):
        for how in how_to_ask(arm):
            yield from (ScoreKey("outputs", step, name, how) for name in SETS)
    last = last_step(recipe, arm)
    yield from (ScoreKey("transfer outputs", last, name, "direct") for name in SETS)
    yield from (ScoreKey("transfer repair", last, name, "repair") for name in REPAIR_SETS)


def rows_of(recipe: AblationRecipe, arm: str) -> int:
    """Return the number of rows in the log of a finished model."""
    return len(list(score_keys(recipe, arm))) + last_step(recipe, arm) + 1


@dataclass(frozen=True)
class AblationModel:
    """A model of an ablation: its arm and seed, and where its files are.

    Its folder holds `log.jsonl`, checkpoints while it trains, and `model` when it is done.
    """

    folder: Path
    recipe: AblationRecipe
    arm: str
    seed: int
    data: Path
    """Folder of the data of the seed."""
    vocabulary: Path
    sandbox: Sandbox

    def run(self) -> None:
        """Train the model and measure all scores, or resume where an earlier call stopped.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM stopped the training, after a checkpoint.
            SystemExit: The same, in a worker process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ResumableLog(self.folder / LOG, durable=False, expected="a row of an ablation") as log:
                rows = list(log.rows())
                if not any(row["kind"] == "finished" for row in rows):
                    _Session(self, log, rows).run()
            rmtree(self.folder / "checkpoints", ignore_errors=True)
        finally:
            torch.set_num_threads(threads)


class _Session:
    """One call of `AblationModel.run`."""

    def __init__(self, job: AblationModel, log: ResumableLog, rows: list[dict[str, Any]]) -> None:
        self.job, self.recipe, self.log = job, job.recipe, log
        self.tokenizer = Tokenizer.load(job.vocabulary)
        self.logged_steps = max((row["step"] for row in rows if row["kind"] == "loss"), default=0)
        self.done = {ScoreKey(*(row[name] for name in ScoreKey._fields)) for row in rows if row["kind"] == "score"}
        self.read = {"tokens": 0, "documents": 0}

    def run(self) -> None:
        model = self.initial_model()
        for step in checkpoint_steps(self.recipe, self.job.arm):
            self.train(model, step)
            self.score_outputs(model, "outputs", step, how_to_ask(self.job.arm))
        for transfer in TRANSFERS:
            self.transfer(model, transfer)
        models.save(model, self.job.folder / "model", self.tokenizer)
        self.log.append({"kind": "finished"})

    # ---- training ----------------------------------------------------------------------------------------------------

    def initial_model(self) -> Transformer:
        tokenizer = self.tokenizer
        config = models.preset(
            "tiny",
            vocab_size=tokenizer.vocab_size,
            eos_token_id=tokenizer.stop_tokens,
            bos_token_id=tokenizer.bos_token,
            **self.recipe.model,
        )
        model = Transformer(config)
        models.initialize(model, self.job.seed)
        return model

    def loader(self, *names: str, seed: int) -> PackedLoader:
        sources = {name: (str(self.job.data / "shards" / name), 1.0) for name in names}
        return PackedLoader(sources, self.recipe.seq_len, batch_size=self.recipe.batch_size, seed=seed)

    def settings(self, steps: int, **changes: Any) -> TrainConfig:
        warmup = min(self.recipe.training["warmup_steps"], steps // 4)
        values = {**self.recipe.training, "warmup_steps": warmup, "max_steps": steps, "seed": self.job.seed, **changes}
        return TrainConfig.from_dict(values)

    def train(self, model: Transformer, step: int) -> None:
        """Train up to a step of the run, whose learning rate decays until its last step."""
        recipe = self.recipe
        loader = self.loader(*ARMS[self.job.arm], seed=self.job.seed)
        settings = self.settings(
            step,
            warmup_steps=min(recipe.training["warmup_steps"], recipe.steps // 4),
            horizon_tokens=recipe.steps * recipe.seq_len * recipe.batch_size,
            checkpoint_folder=str(self.job.folder / "checkpoints"),
            checkpoint_every=max(recipe.steps // _CHECKPOINTS, 1),
            keep_checkpoints=1,
        )
        _train(Trainer(model, loader, settings, self.log_loss))
        self.read = {"tokens": loader.stats().tokens, "documents": loader.stats().documents}

    def log_loss(self, progress: Progress) -> None:
        if progress.step > self.logged_steps:
            self.logged_steps = progress.step
            row = {"step": progress.step, "loss": round(progress.loss, 4), "loss_tokens": progress.loss_tokens}
            self.log.append({"kind": "loss", **row})

    # ---- scores ------------------------------------------------------------------------------------------------------

    def score_outputs(self, model: Transformer, task: str, step: int, ways: list[str]) -> None:
        for how in ways:
            keys = [ScoreKey(task, step, name, how) for name in SETS]
            if self.done.issuperset(keys):
                continue
            form = form_of(self.job.arm, how)
            sets = {key: read_held_out(self.job.data, key.set) for key in keys}
            traces = [trace for of_set in sets.values() for trace in of_set]
            answers = predict_outputs(self.engine(model), self.tokenizer, traces, form)
            self.log_scores({key: len(of_set) for key, of_set in sets.items()}, answers)

    def score_repairs(self, model: Transformer, task: str, step: int) -> None:
        sets = {ScoreKey(task, step, name, "repair"): read_repairs(self.job.data, name) for name in REPAIR_SETS}
        tasks = [task for of_set in sets.values() for task in of_set]
        answers = predict_repairs(self.engine(model), self.tokenizer, tasks, self.job.sandbox)
        self.log_scores({key: len(of_set) for key, of_set in sets.items()}, answers)

    def log_scores(self, sizes: dict[ScoreKey, int], answers: Answers) -> None:
        """Append a row for each set, unless the log has it. The sets were answered together, which is faster."""
        at = 0
        for key, size in sizes.items():
            own = {name: values[at : at + size] for name, values in answers._asdict().items()}
            at += size
            if key not in self.done:
                self.log.append({"kind": "score", **key._asdict(), **self.read, **own})

    def engine(self, model: Transformer) -> Engine:
        """Return an engine for a copy of the model: engines change how weights lie in memory."""
        return Engine(copy.deepcopy(model).eval(), self.tokenizer, max_batch=_MAX_BATCH)

    def transfer(self, model: Transformer, name: str) -> None:
        """Fine-tune a copy of the model on a task, and score it."""
        task, last = f"transfer {name}", last_step(self.recipe, self.job.arm)
        if {key for key in score_keys(self.recipe, self.job.arm) if key.task == task} <= self.done:
            return
        tuned = copy.deepcopy(model)
        # Another order than in the training: the first documents are not those that an arm has read.
        loader = self.loader(name, seed=self.job.seed + 1000)
        _train(Trainer(tuned, loader, self.settings(self.recipe.transfer_steps)))
        if name == "outputs":
            self.score_outputs(tuned, task, last, ["direct"])
        else:
            self.score_repairs(tuned, task, last)


def _train(trainer: Trainer) -> None:
    if trainer.run() is TrainingEnd.SIGNAL:
        if multiprocessing.parent_process() is None:
            raise KeyboardInterrupt
        sys.exit(1)
