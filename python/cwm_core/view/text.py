"""Format a trace as text for a terminal, alone or as a diff against a prediction."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cwm_core.trace import ParsedTrace, Trace
from cwm_core.view.diff import Difference, UnmatchedFrame, differences, outcome, verdict

if TYPE_CHECKING:
    from cwm_core._native import Frame

_MIN_WIDTH = 40
_EVENT_WIDTH = len("exception")
# SGR codes of the eight colors that every terminal theme defines, so that they are readable on light and dark.
_DIM, _RED, _GREEN, _YELLOW, _CYAN = "2", "31", "32", "33", "36"
# Characters that could move the cursor, reorder text, or fail to encode.
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def terminal(
    trace: Trace,
    *,
    predicted: Trace | ParsedTrace | None = None,
    start: int = 0,
    limit: int | None = None,
    width: int | None = None,
    color: bool | None = None,
) -> str:
    """Return a trace as text: a summary, then for each frame its event, line number, source line, and changes.

    With `predicted`, frames that differ are shown as in a diff: `-` the recorded frame, `+` the predicted frame, `?`
    what differs. Equal frames take one line each. Control characters are escaped. Text that does not fit ends in `...`.

    Args:
        trace: The trace.
        predicted: Frames to compare with, aligned by position.
        start: Index of the first frame to show.
        limit: Number of frames to show; None for all.
        width: Number of columns, at least 40; None for the width of the terminal, or 100 without a terminal.
        color: Whether to color; None to color if standard output is a terminal and `NO_COLOR` is not set.

    Raises:
        ValueError: `start` or `limit` is negative.
    """
    if start < 0 or (limit is not None and limit < 0):
        raise ValueError(f"start and limit must not be negative: start={start}, limit={limit}")
    found = differences(trace.frames, predicted.frames) if predicted is not None else []
    guesses = predicted.frames if predicted is not None else trace.frames
    length = max(len(trace), len(guesses))
    stop = length if limit is None else min(length, start + limit)
    lines = _Lines(trace, length, width, color)
    rows = list(lines.heading(outcome(trace)))
    if predicted is not None:
        rows += lines.heading(verdict(trace, predicted, found), _RED if found else _GREEN)
    by_index = {difference.index: difference for difference in found}
    for index in range(start, stop):
        difference = by_index.get(index)
        if difference is None:
            rows += lines.frame(index, trace.frames[index], compact=predicted is not None)
            continue
        if difference.frame is not UnmatchedFrame.EXTRA:
            rows += lines.frame(index, trace.frames[index], "-", difference)
        if difference.frame is not UnmatchedFrame.MISSING:
            rows += lines.frame(index, guesses[index], "+", difference)
        if difference.frame is None:
            rows += lines.reason(difference)
    if length > stop:
        rows += lines.heading(f"{length - stop:,} more", _DIM)
    return "\n".join(rows) + "\n"


class _Lines:
    """Formats frames in columns: mark, index, event, line number, source, variables."""

    def __init__(self, trace: Trace, length: int, width: int | None, color: bool | None) -> None:
        columns = shutil.get_terminal_size((100, 24)).columns if width is None else width
        self.width = max(_MIN_WIDTH, columns)
        self.paint = paint if (colorful() if color is None else color) else _plain
        self.index_width = len(str(max(length - 1, 0)))
        self.number_width = len(str(trace.context.count("\n") + 1))
        self.indent = 2 + self.index_width + 1 + _EVENT_WIDTH + 1 + self.number_width + 2
        # Half the space for source lines, half for variables.
        self.source_width = (self.width - self.indent) // 2

    def frame(
        self, index: int, frame: Frame, mark: str = " ", difference: Difference | None = None, *, compact: bool = False
    ) -> Iterator[str]:
        """Yield one row, or two if source and variables do not fit in one. `compact` cuts them to fit."""
        number = "" if frame.lineno is None else str(frame.lineno)
        head = f"{mark} {index:>{self.index_width}} {frame.event:<{_EVENT_WIDTH}} {number:>{self.number_width}}  "
        source = fit(visible(frame.line.rstrip("\n").expandtabs(4)), self.width - len(head))
        shown = visible(_changes(frame, difference))
        if compact and shown:
            source = fit(source, self.source_width)
            shown = fit(shown, self.width - len(head) - self.source_width - 2)
        head_color, source_color, shown_color = {"-": (_RED,) * 3, "+": (_GREEN,) * 3}.get(mark, (_DIM, "", _CYAN))
        gap = max(self.source_width - _cells(source), 0) + 2
        row = self.paint(head, head_color) + self.paint(source, source_color)
        if not shown:
            yield row.rstrip()
        elif len(head) + _cells(source) + gap + _cells(shown) <= self.width:
            yield row + " " * gap + self.paint(shown, shown_color)
        else:
            yield row.rstrip()
            lead = mark + " " * (self.indent + 3)
            yield self.paint(lead, head_color) + self.paint(fit(shown, self.width - len(lead)), shown_color)

    def reason(self, difference: Difference) -> Iterator[str]:
        """Yield the row below two frames that differ."""
        yield self.paint(fit("?" + " " * (self.indent - 1) + visible(str(difference)), self.width), _YELLOW)

    def heading(self, text: str, color: str = "") -> Iterator[str]:
        """Yield a row across all columns."""
        yield self.paint(fit(visible(text), self.width), color)


def _changes(frame: Frame, difference: Difference | None) -> str:
    """Return the frame's value, or its changed variables and those that differ."""
    if frame.locals is None:
        return f"-> {frame.arg}"
    differing = () if difference is None else difference.changed + difference.missing + difference.extra
    shown = ((name, value) for name, value in frame.locals.items() if value != ".." or name in differing)
    return ", ".join(f"{name} = {value}" for name, value in shown)


def visible(text: str) -> str:
    """Escape characters that a terminal would not show."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _cells(text: str) -> int:
    """Return the display width of a text: combining characters take no column, East Asian wide characters two."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def fit(text: str, cells: int) -> str:
    """Cut a text to at most `cells` columns."""
    if _cells(text) <= cells:
        return text
    cut = text[: max(cells - 3, 0)]
    while _cells(cut) > cells - 3:
        cut = cut[:-1]
    return cut + "..."


def colorful() -> bool:
    """Return whether to color standard output."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _plain(text: str, code: str) -> str:
    return text


def paint(text: str, code: str) -> str:
    """Return the text in the color of an SGR code."""
    return f"\x1b[{code}m{text}\x1b[0m" if code and text else text
