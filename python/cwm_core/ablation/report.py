"""Summarize the scores of an ablation with intervals, as Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..evaluation.statistics import student_interval, wilson_interval
from ..support.jsonl import loads
from ..support.log import LogReader
from .model import LOG, AblationModel
from .recipe import ARMS, REPAIR_SETS, SETS, TITLES, AblationRecipe, how_to_ask, last_step

Score = dict[str, Any]
"""A row of scores in a log, with the arm and the seed of its model."""

_UNDEFINED = "–"


class Estimate(NamedTuple):
    """A mean and its 95 % confidence interval, as fractions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the estimate in percent."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def read_scores(jobs: Iterable[AblationModel]) -> list[Score]:
    """Return the scores in the logs of models."""
    return [
        {"arm": job.arm, "seed": job.seed, **row} for job in jobs for row in read_rows_of(job) if row["kind"] == "score"
    ]


def read_rows_of(job: AblationModel) -> list[dict[str, Any]]:
    """Return all rows in the log of a model; none if it has not begun."""
    file = job.folder / LOG
    return [loads(line) for _, line in LogReader(file).lines()] if file.exists() else []


def is_finished(job: AblationModel) -> bool:
    """Return whether a model has all its scores."""
    return any(row["kind"] == "finished" for row in read_rows_of(job))


def select(scores: Iterable[Score], **wanted: Any) -> list[Score]:
    """Return the scores with these values, in the order of their seeds."""
    found = [score for score in scores if all(score[name] == value for name, value in wanted.items())]
    return sorted(found, key=lambda score: int(score["seed"]))


def estimate(scores: Sequence[Score]) -> Estimate | None:
    """Return the mean of the accuracies of seeds; None if there are no answers.

    The interval covers Student's t interval over seeds and Wilson's interval over the answers of all seeds. The first
    alone is too narrow if seeds happen to agree. Each seed has its own programs, so seeds are independent.
    """
    shares = _shares(scores).values()
    if not shares:
        return None
    low, high = _wilson(scores)
    if len(shares) > 1:
        of_seeds = student_interval(list(shares))
        low, high = max(min(low, of_seeds[0]), 0.0), min(max(high, of_seeds[1]), 1.0)
    return Estimate(sum(shares) / len(shares), low, high)


def difference(scores: Sequence[Score], others: Sequence[Score]) -> Estimate | None:
    """Return the mean difference of accuracies, paired by seeds, whose programs are the same.

    The interval covers Student's t interval over seeds and Newcombe's interval over the answers of all seeds
    (Statistics in Medicine 17, 1998, method 10). For one seed, it is Newcombe's.

    Returns:
        The estimate; None if no seed has both.
    """
    seeds = _shares(scores).keys() & _shares(others).keys()
    scores, others = ([score for score in rows if score["seed"] in seeds] for rows in (scores, others))
    if not seeds:
        return None
    one, other = _shares(scores), _shares(others)
    differences = [one[seed] - other[seed] for seed in seeds]
    mean = sum(differences) / len(differences)
    (a_low, a_high), (b_low, b_high) = _wilson(scores), _wilson(others)
    a, b = (sum(shares.values()) / len(shares) for shares in (one, other))
    low, high = mean - math.hypot(a - a_low, b_high - b), mean + math.hypot(a_high - a, b - b_low)
    if len(differences) > 1:
        of_seeds = student_interval(differences)
        low, high = min(low, of_seeds[0]), max(high, of_seeds[1])
    return Estimate(mean, low, high)


def _shares(scores: Sequence[Score]) -> dict[int, float]:
    """Return the accuracy of each seed that has answers."""
    return {score["seed"]: sum(score["right"]) / len(score["right"]) for score in scores if score["right"]}


def _wilson(scores: Sequence[Score]) -> tuple[float, float]:
    right = [hit for score in scores for hit in score["right"]]
    return wilson_interval(sum(right), len(right))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose first column is text and whose other columns are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def markdown(recipe: AblationRecipe, scores: Sequence[Score], figures: Sequence[str], unfinished: int = 0) -> str:
    """Return the report of an ablation.

    Args:
        recipe: Its sizes.
        scores: Its scores.
        figures: Paths of images, relative to the report.
        unfinished: Number of models that lack scores.
    """
    parts = [
        "# What traces teach\n",
        *(
            [f"**Incomplete: {unfinished} models have not finished. Their cells are empty, too.**\n"]
            if unfinished
            else []
        ),
        f"{recipe.seeds} models of each arm, {recipe.steps:,} steps of {recipe.seq_len * recipe.batch_size:,} tokens "
        f"each, and up to {recipe.problems:,} programs of each held-out set for each seed. Accuracies are percentages: "
        f"the mean over seeds and its 95 % confidence interval. {_UNDEFINED} means that the models of an arm were not "
        "trained to answer in this way.\n",
        "## Predicted outputs at the end of training\n",
        _final(recipe, scores),
        "## Against training tokens\n",
        "On programs of the training families. The learning rate decays until the last checkpoint only.\n",
        _against_tokens(recipe, scores),
        "## Cost\n",
        _cost(recipe, scores),
        "## After fine-tuning\n",
        f"{recipe.transfer_steps} steps on outputs or on repairs, from the weights at the end of training.\n",
        _transfers(recipe, scores),
        "## Differences\n",
        "In percentage points, paired by seed. An interval that contains 0 shows no difference.\n",
        _differences(recipe, scores),
        *(f"![{figure}]({figure})\n" for figure in figures),
    ]
    return "\n".join(parts)


def _cell(found: Estimate | None) -> str:
    return _UNDEFINED if found is None else str(found)


def _final(recipe: AblationRecipe, scores: Sequence[Score]) -> str:
    def cells(arm: str, how: str) -> list[str]:
        wanted = {"task": "outputs", "arm": arm, "how": how, "step": last_step(recipe, arm)}
        return [_cell(estimate(select(scores, set=name, **wanted))) for name in SETS]

    header = ["arm", *(f"{how}, {TITLES[name]}" for how in ("direct", "trace") for name in SETS)]
    return table(header, ([arm, *cells(arm, "direct"), *cells(arm, "trace")] for arm in recipe.arms if ARMS[arm]))


def _against_tokens(recipe: AblationRecipe, scores: Sequence[Score]) -> str:
    steps = sorted({score["step"] for score in select(scores, task="outputs")})
    rows = []
    for arm in recipe.arms:
        for how in how_to_ask(arm):
            wanted = {"task": "outputs", "arm": arm, "how": how, "set": "familiar"}
            rows.append([f"{arm}, {how}", *(_cell(estimate(select(scores, step=step, **wanted))) for step in steps)])
    return table(["arm", *(f"{step:,} steps" for step in steps)], rows)


def _cost(recipe: AblationRecipe, scores: Sequence[Score]) -> str:
    rows = []
    for arm in recipe.arms:
        for how in how_to_ask(arm):
            wanted = {"task": "outputs", "arm": arm, "how": how, "step": last_step(recipe, arm)}
            of_sets = [select(scores, set=name, **wanted) for name in SETS]
            if not of_sets[0]:
                continue
            generated = [_mean(token for score in found for token in score["generated"]) for found in of_sets]
            read = [_mean(score[name] for score in of_sets[0]) for name in ("tokens", "documents")]
            rows.append([f"{arm}, {how}", *(f"{number:,.0f}" for number in (*read, *generated))])
    header = ["arm", "tokens read", "documents read", *(f"tokens for an answer, {TITLES[name]}" for name in SETS)]
    return table(header, rows)


def _transfers(recipe: AblationRecipe, scores: Sequence[Score]) -> str:
    def cells(arm: str) -> list[str]:
        found = [select(scores, task="transfer outputs", arm=arm, set=name) for name in SETS]
        found += [select(scores, task="transfer repair", arm=arm, set=name) for name in REPAIR_SETS]
        return [_cell(estimate(one)) for one in found]

    header = ["arm", *(f"direct output, {TITLES[name]}" for name in SETS)]
    header += [f"repair, {TITLES[name]}" for name in REPAIR_SETS]
    return table(header, ([arm, *cells(arm)] for arm in recipe.arms))


def _differences(recipe: AblationRecipe, scores: Sequence[Score]) -> str:
    def final(arm: str, how: str) -> Callable[[str], list[Score]]:
        step = last_step(recipe, arm)
        return lambda name: select(scores, task="outputs", arm=arm, how=how, step=step, set=name)

    def tuned(arm: str, task: str) -> Callable[[str], list[Score]]:
        return lambda name: select(scores, task=f"transfer {task}", arm=arm, set=name)

    pairs = {
        "traces (trace) − outputs (direct)": (final("traces", "trace"), final("outputs", "direct")),
        "mixed (trace) − traces (trace)": (final("mixed", "trace"), final("traces", "trace")),
        "mixed (direct) − outputs (direct)": (final("mixed", "direct"), final("outputs", "direct")),
        "mixed (trace) − mixed (direct)": (final("mixed", "trace"), final("mixed", "direct")),
        "calls (trace) − traces (trace)": (final("calls", "trace"), final("traces", "trace")),
        "changes (trace) − traces (trace)": (final("changes", "trace"), final("traces", "trace")),
    }
    for task, title in (("outputs", "direct output, fine-tuned"), ("repair", "repair, fine-tuned")):
        pairs |= {
            f"{title}: {one} − {other}": (tuned(one, task), tuned(other, task))
            for one, other in (("traces", "outputs"), ("mixed", "outputs"), ("traces", "untrained"))
        }
    rows = ([title, *(_cell(difference(a(name), b(name))) for name in SETS)] for title, (a, b) in pairs.items())
    return table(["difference", *(TITLES[name] for name in SETS)], rows)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
