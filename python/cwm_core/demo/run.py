"""Run the steps of the demo in order, with progress, and print and write the results."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import model as models
from .. import view
from ..data import describe
from ..evaluation import TraceScores, mean_scores, next_line_baseline, score_trace
from ..inference import Engine, Prediction, predict_states, predict_traces
from ..model import Transformer
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import CALL_SEP, END_OF_TEXT, FRAME_SEP
from ..trace import Trace
from ..training import Progress, TrainConfig, TrainingEnd
from ..training.processes import available_processes, run_processes
from ..training.report import show_progress
from ..training.run import DataConfig, RunConfig, model_config, run
from .data import programs, record, train_vocabulary, write_shards
from .recipe import FULL, SHORT, Recipe

THREADS = 1  # more threads wait for each other longer than they compute
GALLERY_SIZE = 10
GALLERY_SCORES = {"state": "states", "action": "lines", "output": "output"}


def run_demo(folder: str | os.PathLike[str], *, short: bool = False) -> None:
    """Run the demo, print its results, and write everything to a folder.

    Args:
        folder: Folder for the vocabulary, the shards, the model, and the page.
        short: Use a smaller recipe, with worse scores.
    """
    Demo(SHORT if short else FULL, Path(folder), Console()).run()


class Demo:
    """One run of the demo.

    Attributes:
        results: What the run measured.
        losses: Losses of the training steps.
    """

    def __init__(self, recipe: Recipe, out: Path, console: Console) -> None:
        """Write to the folder `out`. Each run writes its shards to a new folder in it."""
        self.recipe, self.console = recipe, console
        self.out = out
        self.results: dict[str, object] = {"recipe": asdict(recipe)}
        self.losses: list[float] = []

    def run(self) -> None:
        """Run all steps."""
        threads = torch.get_num_threads()
        torch.set_num_threads(THREADS)
        try:
            self._run()
        finally:
            torch.set_num_threads(threads)

    def _run(self) -> None:
        began = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        train, held_out = self.record()
        tokenizer, shards = self.tokenize(train)
        untrained, trained = self.train(tokenizer, shards)
        predictions = self.predict(tokenizer, untrained, trained, held_out)
        self.results["seconds"] = time.monotonic() - began
        self.show(held_out, predictions)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=2))
        self.console.print(f"Total: {self.results['seconds']:.0f} s. All figures are in {self.out / 'results.json'}")

    def record(self) -> tuple[list[Trace], list[Trace]]:
        """Record executions to train on and executions to predict."""
        train, held_out = programs(self.recipe)
        began = time.monotonic()
        train_traces = record(track(train, "Recording programs", console=self.console))
        seconds = time.monotonic() - began
        held_out_traces = record(held_out)
        frames = sum(map(len, train_traces))
        self.console.print(
            f"  {len(train)} executions, {frames} frames, {frames / len(train):.1f} per trace, {seconds:.1f} s"
        )
        self.results["recorded"] = {"traces": len(train), "frames": frames, "seconds": seconds}
        return train_traces, held_out_traces

    def tokenize(self, traces: list[Trace]) -> tuple[Tokenizer, Path]:
        """Train a vocabulary and write token shards."""
        began = time.monotonic()
        tokenizer = train_vocabulary(traces, self.recipe)
        # The writer refuses a folder that holds shards, so each run uses a new one.
        shards = self.out / f"shards-{time.time_ns()}"
        written = write_shards(shards, tokenizer, traces, self.recipe)
        stats = describe(shards)
        self.console.print(
            f"Tokenized: vocabulary of {tokenizer.vocab_size}, {stats.tokens} tokens in {written} documents "
            f"({len(traces) - written} too long), {time.monotonic() - began:.1f} s"
        )
        self.results["tokens"] = {"vocabulary": tokenizer.vocab_size, "tokens": stats.tokens, "documents": written}
        return tokenizer, shards

    def train(self, tokenizer: Tokenizer, shards: Path) -> tuple[Transformer, Transformer]:
        """Return the model before and after training; raise KeyboardInterrupt if a signal ends training."""
        config = self._run_config(tokenizer, shards)
        untrained = Transformer(model_config(config.model, tokenizer))
        models.initialize(untrained, self.recipe.seed, scheme=config.training.initialization)
        size = sum(parameter.numel() for parameter in untrained.parameters())
        began = time.monotonic()
        self.console.print(f"Training {size / 1e6:.2f} M parameters")
        with show_progress() as show:

            def on_step(step: Progress) -> None:
                self.losses.append(step.loss)
                show(step)

            listeners = (on_step, self._note, self._note)
            processes = available_processes(config)
            end = run_processes(config, processes, *listeners) if processes > 1 else run(config, *listeners)
        if end is TrainingEnd.SIGNAL:
            raise KeyboardInterrupt  # the scores of a model that is half trained mean nothing
        seconds = time.monotonic() - began
        tokens = len(self.losses) * self.recipe.batch_size * self.recipe.seq_len
        last = sum(self.losses[-20:]) / len(self.losses[-20:])
        self.console.print(f"  {tokens} tokens, {tokens / seconds:,.0f} per second, last loss {last:.3f}")
        self.results["training"] = {"parameters": size, "tokens": tokens, "seconds": seconds, "losses": self.losses}
        return untrained, models.load(config.output)

    def _run_config(self, tokenizer: Tokenizer, shards: Path) -> RunConfig:
        recipe = self.recipe
        tokenizer.save(self.out / "model")
        (self.out / "model" / "metrics.jsonl").unlink(missing_ok=True)  # of an earlier run
        data = DataConfig({"traces": (str(shards), 1.0)}, recipe.seq_len, recipe.batch_size, recipe.seed)
        training = TrainConfig.from_dict({"max_steps": recipe.steps, "seed": recipe.seed, **recipe.training})
        return RunConfig(self.out / "model", self.out / "model", recipe.model, data, training)

    def _note(self, text: str) -> None:
        self.console.print(f"  {text}")

    def predict(
        self, tokenizer: Tokenizer, untrained: Transformer, trained: Transformer, traces: list[Trace]
    ) -> list[Prediction]:
        """Return free predictions of the trained model, and add the scores of all predictors to `results`."""
        longest = max(len(tokenizer.encode_trace(trace)) for trace in traces) * 5 // 4
        scores: dict[str, TraceScores] = {}
        free: list[Prediction] = []
        for name, engine in (
            ("untrained", Engine(untrained, tokenizer, max_batch=100)),
            ("trained", Engine(trained, tokenizer, max_batch=100)),
        ):
            with self.console.status(f"Predicting {len(traces)} unseen executions, {name} model"):
                free = predict_traces(engine, traces, max_new_tokens=longest)
                along = predict_states(engine, traces, max_new_tokens=longest, constrained=False)
            scores[f"{name}, free"] = _mean(traces, free)
            scores[f"{name}, lines given"] = _mean(traces, along)
        scores["same state, next line"] = mean_scores(map(next_line_baseline, traces))
        self.results["scores"] = {name: asdict(one) for name, one in scores.items()}
        self.console.print(score_table(scores))
        return free

    def show(self, traces: list[Trace], predictions: list[Prediction]) -> None:
        """Show predictions beside the real executions: one on the console, the first wrong one if any, and ten as a
        page.
        """
        predicted = [with_first_frame(*pair) for pair in zip(traces, predictions, strict=True)]
        right = [
            prediction.parsed.complete and not view.differences(trace.frames, guess.frames)
            for trace, prediction, guess in zip(traces, predictions, predicted, strict=True)
        ]
        shown = choose_examples(right)
        first = next((at for at in shown if not right[at]), shown[0])
        text = view.terminal(traces[first], predicted=predicted[first], width=self.console.width)
        self.console.print(text, markup=False)
        examples = []
        for at in shown:
            scores = score_trace(traces[at], predictions[at].parsed)
            named = {title: getattr(scores, name) for name, title in GALLERY_SCORES.items()}
            examples.append(view.Example(call_of(traces[at]), traces[at], predicted[at], named))
        summary = (
            f"The model predicted {sum(right)} of {len(traces)} unseen executions without an error. "
            "The list shows the first right ones and the first wrong ones."
        )
        page = self.out / "predictions.html"
        page.write_text(view.gallery(examples, title="Predicted executions", summary=summary), encoding="utf-8")
        self.results["right"] = sum(right)
        self.console.print(f"{len(shown)} predictions with their scores, as a web page: {page}")


def choose_examples(right: list[bool]) -> list[int]:
    """Return the positions of ten predictions, in their order: the first five right ones and the first five wrong ones.

    If there are fewer than five of a kind, more of the other kind fill the list.
    """
    hits = [at for at, is_right in enumerate(right) if is_right]
    misses = [at for at, is_right in enumerate(right) if not is_right]
    chosen = hits[: max(GALLERY_SIZE // 2, GALLERY_SIZE - len(misses))]
    return sorted(chosen + misses[: GALLERY_SIZE - len(chosen)])


def call_of(trace: Trace) -> str:
    """Return the expression that the entry of a recorded source returns."""
    return trace.frames[1].line.strip().removeprefix("return ")


def with_first_frame(trace: Trace, prediction: Prediction) -> Trace:
    """Return a prediction as a whole trace: the context and the frame of the prompt, then the predicted frames."""
    text = trace.to_text()
    end = text.index(FRAME_SEP, text.index(CALL_SEP)) + len(FRAME_SEP)
    frames = prediction.parsed.trace.to_text().partition(FRAME_SEP)[2]
    return Trace.parse(text[:end] + frames.removesuffix(END_OF_TEXT)).trace


def _mean(traces: list[Trace], predictions: list[Prediction]) -> TraceScores:
    return mean_scores(
        score_trace(trace, prediction.parsed) for trace, prediction in zip(traces, predictions, strict=True)
    )


def score_table(scores: dict[str, TraceScores]) -> Table:
    """Return the scores in percent, one row for each predictor."""
    columns = {"valid_format": "valid", "action": "action", "state": "state", "output": "output"}
    columns |= {"valid_json": "JSON", "key": "names", "key_value": "values"}
    table = Table(title="Unseen programs: scores in percent", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("predictor", no_wrap=True)
    for title in columns.values():
        table.add_column(title, justify="right", no_wrap=True)
    for name, one in scores.items():
        values = (getattr(one, column) for column in columns)
        table.add_row(name, *("-" if value is None else f"{100 * value:.1f}" for value in values))
    return table
