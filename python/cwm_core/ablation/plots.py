"""Draw the figures of an ablation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .model import AblationModel
from .recipe import ARMS, REPAIR_SETS, SETS, TITLES, how_to_ask
from .report import Score, estimate, read_rows_of, select

_COLORS = {
    "outputs": "#d55e00", "traces": "#0072b2", "mixed": "#009e73", "calls": "#cc79a7", "changes": "#e69f00",
    "untrained": "#777777",
}  # fmt: skip
_STYLES = {"direct": "--", "trace": "-"}
# Legends cover no point.
_BESIDE: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
# Points of a loss curve: means of as many steps as make this number of points.
_POINTS = 40
# Frames in a bin of lengths.
_BIN = 6


def draw(folder: Path, scores: Sequence[Score], jobs: Sequence[AblationModel]) -> list[str]:
    """Draw all figures as SVG and return their paths relative to the parent of the folder.

    Raises:
        ModuleNotFoundError: Matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figures = {
        "loss": _loss(Figure(figsize=(6, 4)), jobs),
        "tokens": _against_tokens(Figure(figsize=(11, 4)), scores),
        "length": _against_length(Figure(figsize=(6, 4)), scores),
        "transfer": _transfer(Figure(figsize=(9, 4)), scores),
    }
    folder.mkdir(exist_ok=True)
    # Texts stay texts, and nothing depends on the time.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cwm"}):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    return [f"{folder.name}/{name}.svg" for name in figures]


def _loss(figure: Any, jobs: Sequence[AblationModel]) -> Any:
    axes = figure.subplots()
    for arm in dict.fromkeys(job.arm for job in jobs if ARMS[job.arm]):
        curves = [[row["loss"] for row in read_rows_of(job) if row["kind"] == "loss"] for job in jobs if job.arm == arm]
        means = [sum(losses) / len(losses) for losses in zip(*curves, strict=True)]
        width = max(len(means) // _POINTS, 1)
        points = [sum(means[at : at + width]) / width for at in range(0, len(means) - width + 1, width)]
        axes.plot([width * (at + 0.5) for at in range(len(points))], points, label=arm, color=_COLORS[arm])
    axes.set(xlabel="step", ylabel="loss, nats per token", title="Training loss (documents differ between arms)")
    axes.legend(**_BESIDE)
    return figure


def _against_tokens(figure: Any, scores: Sequence[Score]) -> Any:
    for axes, name in zip(figure.subplots(1, len(SETS), sharey=True), SETS, strict=True):
        for arm, how, found in _ways(select(scores, task="outputs", set=name)):
            steps = sorted({score["step"] for score in found})
            at_steps = [select(found, step=step) for step in steps]
            tokens = [sum(s["tokens"] for s in one) / len(one) / 1e6 for one in at_steps]
            _errors(axes, arm, how, tokens, at_steps)
        axes.set(title=TITLES[name], xlabel="training tokens, millions")
    axes.legend(**_BESIDE)
    figure.axes[0].set_ylabel("right outputs, %")
    return figure


def _against_length(figure: Any, scores: Sequence[Score]) -> Any:
    """Draw the accuracy on programs of the training families against the frames of their executions."""
    axes = figure.subplots()
    for arm, how, found in _ways(select(scores, task="outputs")):
        last = [
            score for score in select(found, step=max(score["step"] for score in found)) if score["set"] != "unseen"
        ]
        bins = sorted({frames // _BIN for score in last for frames in score["sizes"]})
        _errors(axes, arm, how, [(at + 0.5) * _BIN for at in bins], [_in_bin(last, at) for at in bins])
    axes.set(xlabel="frames of the execution", ylabel="right outputs, %", title="End of training")
    axes.legend(**_BESIDE)
    return figure


def _in_bin(scores: Sequence[Score], at: int) -> list[Score]:
    """Return the answers to programs of one bin of lengths, of all seeds and sets together, as if of one seed."""
    right = [
        hit
        for score in scores
        for hit, frames in zip(score["right"], score["sizes"], strict=True)
        if frames // _BIN == at
    ]
    return [{"seed": 0, "right": right}]


def _transfer(figure: Any, scores: Sequence[Score]) -> Any:
    panels = [("transfer outputs", SETS), ("transfer repair", REPAIR_SETS)]
    for axes, (task, sets) in zip(figure.subplots(1, 2), panels, strict=True):
        width = 0.8 / len(ARMS)
        for number, arm in enumerate(ARMS):
            places = [at + number * width for at in range(len(sets))]
            at_sets = [select(scores, task=task, arm=arm, set=name) for name in sets]
            _errors(axes, arm, None, places, at_sets)
        axes.set_xticks([at + 0.4 for at in range(len(sets))], [TITLES[name].replace(" ", "\n") for name in sets])
        axes.set(title=f"{task}: right, %")
    axes.legend(**_BESIDE)
    return figure


def _ways(scores: Sequence[Score]) -> Iterable[tuple[str, str, list[Score]]]:
    for arm in ARMS:
        for how in how_to_ask(arm):
            if found := select(scores, arm=arm, how=how):
                yield arm, how, found


def _errors(axes: Any, arm: str, how: str | None, xs: Sequence[float], points: Sequence[Sequence[Score]]) -> None:
    """Draw the accuracy of each point with its interval: a line, or separate points if `how` is None."""
    found = [(x, one) for x, scores in zip(xs, points, strict=True) if (one := estimate(scores))]
    axes.errorbar(
        [x for x, _ in found],
        [100 * one.value for _, one in found],
        [
            [100 * max(one.value - one.low, 0) for _, one in found],
            [100 * max(one.high - one.value, 0) for _, one in found],
        ],
        label=f"{arm}, {how}" if how else arm,
        color=_COLORS[arm],
        linestyle=_STYLES[how] if how else "none",
        marker="o",
        markersize=3,
        capsize=2,
    )
