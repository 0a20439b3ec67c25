"""Build the HTML page of one or more traces: `page.html` with the frames as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, TypeVar

from cwm_core.trace import MARK, ParsedTrace, Trace
from cwm_core.view.diff import Difference, differences, outcome, verdict

if TYPE_CHECKING:
    from cwm_core._native import Frame

_Key = TypeVar("_Key", bound=Hashable)
_EVENTS = ("call", "line", "return", "exception")


def html(trace: Trace, *, predicted: Trace | ParsedTrace | None = None, title: str | None = None) -> str:
    """Return a self-contained HTML page that steps through a trace.

    The page is pure ASCII and loads no other files. Its size grows with the changes in the trace, like
    `Trace.nbytes`. Add `#step=N` to its address to open it at frame N.

    Args:
        trace: The trace.
        predicted: Predicted frames to show beside the recorded ones, with differences marked.
        title: Title of the page.
    """
    shown = title or "Execution trace"
    return _page(shown, "", [Example(shown, trace, predicted)])


@dataclass(frozen=True)
class Example:
    """A predicted execution in a gallery."""

    title: str
    """Name of the example, such as the call that runs."""
    trace: Trace
    """The recorded trace."""
    predicted: Trace | ParsedTrace | None
    """The predicted frames."""
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Scores from 0 to 1 by name; None for a score that does not apply."""


def gallery(examples: Iterable[Example], *, title: str, summary: str = "") -> str:
    """Return a self-contained HTML page with a list of predicted executions and the page of `html` for each.

    Add `#example=M&step=N` to its address to open example M, counted from 0, at frame N. Without a step, an example
    opens at its first difference.

    Args:
        examples: The examples, in the order of the list.
        title: Title of the page.
        summary: Text above the list, for example how the examples were chosen.

    Raises:
        ValueError: There are no examples.
    """
    shown = list(examples)
    if not shown:
        raise ValueError("a gallery needs at least one example, got none")
    return _page(title, summary, shown)


def _page(title: str, summary: str, examples: list[Example]) -> str:
    data = {"title": title, "summary": summary, "examples": [_example(example) for example in examples]}
    parts = {"TITLE": _ascii_html(title), "DATA": _json_in_html(data)}
    template = resources.files("cwm_core.view").joinpath("page.html").read_text("utf-8")
    return re.sub("@(TITLE|DATA)@", lambda place: parts[place[1]], template)


def _example(example: Example) -> dict[str, object]:
    trace, predicted = example.trace, example.predicted
    found = differences(trace.frames, predicted.frames) if predicted is not None else []
    tables = _Tables()
    return {
        "title": example.title,
        "scores": dict(example.scores),
        "context": trace.context,
        "first_line": _first_line(trace),
        "outcome": outcome(trace),
        "output": trace.output,
        "recorded": tables.rows(trace.frames),
        "predicted": None if predicted is None else tables.rows(predicted.frames),
        "verdict": None if predicted is None else verdict(trace, predicted, found),
        "differences": [tables.difference(difference) for difference in found],
        "lines": list(tables.lines),
        "names": list(tables.names),
        "shapes": list(tables.shapes),
        "values": list(tables.values),
    }


def notebook(trace: Trace) -> str:
    """Return HTML that shows the page of `html` in a notebook.

    The page runs in a sandboxed frame without access to the notebook, because a trace may hold hostile text.
    """
    return f'<iframe sandbox="allow-scripts" style="width: 100%; height: 40em" srcdoc="{escape(html(trace))}"></iframe>'


class _Tables:
    """Tables of distinct lines, names, shapes, and values. A frame becomes a short list of indices into them."""

    def __init__(self) -> None:
        self.lines: dict[tuple[int, str], int] = {}
        self.names: dict[str, int] = {}
        self.shapes: dict[tuple[int, ...], int] = {}
        self.values: dict[str, int] = {}

    def rows(self, frames: Iterable[Frame]) -> list[list[int]]:
        """Return a row for each frame. Variables that a frame leaves out are filled in."""
        scopes: list[dict[str, str]] = []
        rows = []
        for frame in frames:
            variables = frame.locals
            if frame.event == "call":
                scopes.append({})
            if variables is not None and scopes:
                leaves_out = frame.event == "line" and next(iter(variables.items()), None) == ("..", "..")
                if leaves_out and ".." not in scopes[-1]:
                    shown = {name: value for name, value in variables.items() if name != ".."}
                    variables = dict.fromkeys(scopes[-1], "..") | shown
                scopes[-1] = variables
            rows.append(self._row(frame, variables))
            if frame.event == "return" and scopes:
                scopes.pop()
        return rows

    def _row(self, frame: Frame, variables: dict[str, str] | None) -> list[int]:
        """Return `[event, line, shape, slot, value, slot, value, ...]`, with the variables that are not `..`.

        For RETURN and EXCEPTION, return `[event, line, value]`.
        """
        row = [_EVENTS.index(frame.event), _intern(self.lines, (frame.lineno or 0, frame.line))]
        if variables is None:
            row.append(_intern(self.values, frame.arg or ""))
            return row
        row.append(_intern(self.shapes, tuple(_intern(self.names, name) for name in variables)))
        for slot, value in enumerate(variables.values()):
            if value != "..":
                row += (slot, _intern(self.values, value))
        return row

    def difference(self, difference: Difference) -> list[int]:
        """Return `[index, flags, name, name, ...]`. The bits of the flags are frame, event, line, and value."""
        parts = (difference.frame is not None, difference.event, difference.line, difference.value)
        flags = sum(1 << bit for bit, differs in enumerate(parts) if differs)
        names = difference.changed + difference.missing + difference.extra
        return [difference.index, flags, *(_intern(self.names, name) for name in names)]


def _first_line(trace: Trace) -> int:
    """Return the number of the context's first line, in the line numbers of the frames.

    It follows from the marked line, which is that of frame 0. The context of a call in a file begins with an empty line
    that is not in the file; its number is 0.
    """
    first: Frame | None = trace.frames[0] if len(trace) else None
    if first is not None and first.lineno is not None:
        for number, line in reversed(list(enumerate(trace.context.split("\n")))):
            if line.endswith(MARK) and line.removesuffix(MARK) == first.line.removesuffix("\n"):
                return first.lineno - number
    return 1


def _intern(table: dict[_Key, int], key: _Key) -> int:
    return table.setdefault(key, len(table))


def _json_in_html(data: object) -> str:
    """Return JSON that is safe in a `<script>` element: ASCII, without characters that HTML interprets."""
    text = json.dumps(data, separators=(",", ":"))
    return re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _ascii_html(text: str) -> str:
    return escape(text).encode("ascii", "xmlcharrefreplace").decode()
