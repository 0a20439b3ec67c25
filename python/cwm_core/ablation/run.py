"""Run an ablation: prepare data, train the models side by side, and report."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..machines import Sandbox
from ..machines.programs import check_sandbox
from ..support.files import locked, write_file
from ..support.jsonl import loads
from ..support.pool import in_order, processes
from ..tokenizer import Tokenizer
from .data import prepare_seed, prepare_vocabulary
from .model import LOG, AblationModel, rows_of
from .plots import draw
from .recipe import FULL, SHORT, AblationRecipe
from .report import is_finished, markdown, read_scores

_POLL_SECONDS = 1.0
_LINE_SECONDS = 30.0  # between lines where there is no terminal to draw on


def run_ablation(
    folder: str | os.PathLike[str],
    *,
    short: bool = False,
    seeds: int | None = None,
    tokens: int | None = None,
    problems: int | None = None,
    workers: int = 1,
    sandbox: Sandbox = "bubblewrap",
    quiet: bool = False,
) -> str:
    """Run an ablation, or resume an interrupted one, and return its report as Markdown.

    The folder gets `report.md` and `results.jsonl`, which grow with each model, figures, and the models in `runs`.

    Args:
        folder: Folder for everything. An ablation of the same sizes resumes, with any number of seeds.
        short: Use sizes for about ten minutes.
        seeds: Models of each arm; None uses those of the form.
        tokens: Training tokens of each model; None uses those of the form.
        problems: Programs in each held-out set of a seed; None uses those of the form.
        workers: Processes, each with one thread.
        sandbox: Isolation of programs that models repaired. Use "process" only for a quick look on a machine of your
            own.
        quiet: Do not show progress.

    Raises:
        ValueError: The folder holds an ablation of other sizes.
        BlockingIOError: Another ablation uses the folder.
        SandboxError: The sandbox does not work on this machine.
    """
    form = SHORT if short else FULL
    recipe = replace(form, seeds=seeds or form.seeds, tokens=tokens or form.tokens, problems=problems or form.problems)
    return run_recipe(Path(folder), recipe, workers, sandbox, quiet)


def run_recipe(out: Path, recipe: AblationRecipe, workers: int, sandbox: Sandbox, quiet: bool) -> str:
    """Run an ablation of any sizes; see `run_ablation`."""
    import matplotlib  # noqa: F401  # it is needed after hours of work

    check_sandbox(sandbox)
    console = Console(stderr=True, quiet=quiet)
    with locked(out, "ablation"), processes(workers) as pool:
        _check_settings(out / "settings.json", recipe)
        console.print(f"preparing the programs of {recipe.seeds} seeds")
        prepare_vocabulary(out / "vocabulary", recipe)
        list(in_order(pool, partial(_prepare, out, recipe), range(recipe.seeds)))
        jobs = ablation_models(out, recipe, sandbox)
        with _showing_progress(jobs, console):
            for _ in in_order(pool, AblationModel.run, jobs):
                _report(out, recipe, jobs)
        return _report(out, recipe, jobs, draw(out / "figures", read_scores(jobs), jobs))


def ablation_models(out: Path, recipe: AblationRecipe, sandbox: Sandbox) -> list[AblationModel]:
    """Return the models of an ablation, in the order in which they train: all arms of a seed before the next seed."""
    return [
        AblationModel(out / "runs" / f"{arm}-{seed}", recipe, arm, seed, _data(out, seed), out / "vocabulary", sandbox)
        for seed in range(recipe.seeds)
        for arm in recipe.arms
    ]


def _data(out: Path, seed: int) -> Path:
    return out / "data" / f"seed-{seed}"


def _prepare(out: Path, recipe: AblationRecipe, seed: int) -> None:
    prepare_seed(_data(out, seed), recipe, seed, Tokenizer.load(out / "vocabulary"))


def _report(out: Path, recipe: AblationRecipe, jobs: list[AblationModel], figures: Sequence[str] = ()) -> str:
    """Write the results so far and the report on them, and return it."""
    scores = read_scores(jobs)
    write_file(out / "results.jsonl", "".join(f"{json.dumps(score)}\n" for score in scores))
    report = markdown(recipe, scores, figures, unfinished=sum(not is_finished(job) for job in jobs))
    write_file(out / "report.md", report)
    return report


def _check_settings(file: Path, recipe: AblationRecipe) -> None:
    """Raise ValueError if the folder's models have other sizes. Their number may grow: a seed depends on no other."""
    settings = json.loads(json.dumps(asdict(recipe)))
    del settings["seeds"]
    if not file.exists():
        write_file(file, json.dumps(settings, indent=1) + "\n")
        return
    before = loads(file.read_bytes())
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"{file.parent} holds an ablation with {name} = {before.get(name)!r}, not {value!r}: choose another "
                "folder or the same sizes"
            )


@contextmanager
def _showing_progress(jobs: list[AblationModel], console: Console) -> Iterator[None]:
    """Show how many rows the logs of the models have, which the processes write."""
    total = sum(rows_of(job.recipe, job.arm) for job in jobs)
    bar = Progress(
        TextColumn("training and predicting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True), console=console, disable=not console.is_terminal,
    )  # fmt: skip
    task = bar.add_task("", total=total)
    ended = threading.Event()

    def show() -> None:
        seconds = _POLL_SECONDS if console.is_terminal else _LINE_SECONDS
        while not ended.wait(seconds):
            done = sum(map(_count_lines, jobs))
            bar.update(task, completed=done)
            if not console.is_terminal:
                console.print(f"{done:,} of {total:,} rows of results")

    thread = threading.Thread(target=show, daemon=True)
    with bar:
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _count_lines(job: AblationModel) -> int:
    try:
        return (job.folder / LOG).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
