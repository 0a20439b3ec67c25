"""Write an analysis of failures as an HTML page with plots, and its worst cases as a gallery of traces."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import view
from .failures import Case, DistanceRow, FailureReport
from .report import Measure, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT, CASES, DATA = "report.html", "cases.html", "failures.json"
"""Files of an analysis: the page, the gallery of its worst cases, and the data."""

LEAST_TRACES = 10
"""Fewest recordings for a point in the plot of distances."""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where predictions fail</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ padding: 0.2em 1em 0.2em 0; text-align: right; border-bottom: 1px solid #8884; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; background: white; }}
</style>
</head>
<body>
<h1>Where predictions fail</h1>
<p>{summary}</p>
{sections}
</body>
</html>
"""


def write_failures(report: FailureReport, folder: str | os.PathLike[str]) -> None:
    """Write `report.html`, `cases.html` if there are any cases, and `failures.json` to a folder.

    The pages load nothing from other places.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: A file cannot be written.
    """
    where = Path(folder)
    page = _page(report)
    if report.cases:
        examples = [view.Example(_title(case), case.trace, case.predicted) for case in report.cases]
        summary = "For each cause, the predictions that diverge after the smallest part of the execution."
        write_whole(where / CASES, view.gallery(examples, title="Worst cases", summary=summary))
    write_whole(where / REPORT, page)
    write_whole(where / DATA, json.dumps(report.to_json(), indent=1) + "\n")


def _page(report: FailureReport) -> str:
    wrong = sum(report.causes.values())
    model = report.settings.get("model", "a model")
    summary = f"{report.traces:,} executions predicted by {model}; {wrong:,} predictions diverge from the recording."
    sections = [
        _section("First divergence by cause", _causes(report, wrong), _plot(_draw_causes, report)),
        _section(
            "Wrong values by kind",
            "Among the values that are written up to the first divergence, the share that is wrong.",
            _table(
                ("kind", "wrong", "95 % interval", "values"), [(row.kind, *_cells(row.wrong)) for row in report.kinds]
            ),
        ),
        _section(
            "Accuracy by distance from the start",
            f"Over all executions with a frame at that distance, at least {LEAST_TRACES}. Long executions differ from "
            "short ones, so the curves need not fall.",
            _plot(_draw_distance, report),
        ),
        _section(
            "Tracking a permutation",
            "Five variables exchange their values. Freely, the model writes lines and states; with lines given, only "
            "states.",
            _table(
                (
                    "swaps",
                    "output, free",
                    "95 % interval",
                    "programs",
                    "output, lines given",
                    "95 % interval",
                    "programs",
                ),
                [(n, *_cells(free), *_cells(given)) for n, (free, given) in report.swaps.items()],
            ),
            _plot(_draw_swaps, report),
        ),
        _section(
            "Nested functions of strings",
            "Expected is the share if each function succeeds as often inside an expression as alone.",
            _table(
                ("functions", "output", "95 % interval", "programs", "expected"),
                [(n, *_cells(seen), _percent(expected)) for n, (seen, expected) in report.strings.items()],
            ),
            _plot(_draw_strings, report),
        ),
        _section("Worst cases", *map(_link, range(len(report.cases)), report.cases)),
    ]
    return _PAGE.format(summary=escape(summary), sections="\n".join(sections))


def _section(heading: str, *parts: str) -> str:
    """Return a section; parts that are not elements become paragraphs."""
    shown = (part if part.startswith("<") else f"<p>{escape(part)}</p>" for part in parts)
    return "\n".join([f"<h2>{heading}</h2>", *shown])


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    def line(tag: str, cells: Sequence[object]) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", headings), *(line("td", row) for row in rows), "</table>"])


def _causes(report: FailureReport, wrong: int) -> str:
    rows = [(cause, f"{number:,}", _percent(number / wrong)) for cause, number in report.causes.items()]
    return _table(("cause", "predictions", "share"), rows)


def _cells(one: Measure) -> tuple[str, str, str]:
    interval = "-" if one.low is None else f"{_percent(one.low)} to {_percent(one.high)}"
    return _percent(one.value), interval, f"{one.n:,}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _title(case: Case) -> str:
    found = case.divergence
    name = f" of {found.name}" if found.name else ""
    kind = f" ({found.kind})" if found.kind else ""
    return f"{case.id}: {found.cause}{name}{kind} at frame {found.frame} of {case.frames}"


def _link(number: int, case: Case) -> str:
    step = min(case.divergence.frame, case.frames - 1)
    return f'<p><a href="{CASES}#example={number}&amp;step={step}">{escape(_title(case))}</a></p>'


# ---- plots


def _plot(draw: Any, report: FailureReport) -> str:
    """Return a plot as an SVG element, the same text for the same report."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": draw.__name__}):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, report)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    return re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)


def _draw_causes(axes: Axes, report: FailureReport) -> None:
    causes = list(report.causes)[::-1]
    axes.barh([str(cause) for cause in causes], [report.causes[cause] for cause in causes])
    axes.set_xlabel("predictions")


def _draw_distance(axes: Axes, report: FailureReport) -> None:
    rows: list[DistanceRow] = [row for row in report.distance if row.traces >= LEAST_TRACES]
    for name in ("right", "still_right"):
        _line(axes, [row.frame for row in rows], [getattr(row, name) for row in rows], name.replace("_", " "))
    _finish(axes, "frames from the start", "frames, percent")


def _draw_swaps(axes: Axes, report: FailureReport) -> None:
    for at, name in enumerate(("free", "lines given")):
        _line(axes, list(report.swaps), [pair[at] for pair in report.swaps.values()], name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(report.swaps), [str(n) for n in report.swaps])
    _finish(axes, "swaps", "right outputs, percent")


def _draw_strings(axes: Axes, report: FailureReport) -> None:
    _line(axes, list(report.strings), [seen for seen, _ in report.strings.values()], "observed")
    expected = [(n, 100 * share) for n, (_, share) in report.strings.items() if share is not None]
    axes.plot([n for n, _ in expected], [share for _, share in expected], "--", color="gray", label="expected")
    axes.set_xticks(list(report.strings))
    _finish(axes, "nested functions", "right outputs, percent")


def _line(axes: Axes, x: Sequence[int], measures: Sequence[Measure], label: str) -> None:
    """Draw a line with its intervals, without points of no value."""
    points = [(at, one) for at, one in zip(x, measures, strict=True) if one.value is not None]
    at = [at for at, _ in points]
    axes.plot(at, [100 * (one.value or 0.0) for _, one in points], marker=".", label=label)
    low, high = ([100 * (getattr(one, end) or 0.0) for _, one in points] for end in ("low", "high"))
    axes.fill_between(at, low, high, alpha=0.2)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_ylim(0, 102)
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False)
