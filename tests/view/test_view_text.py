"""The terminal view."""

import re
import sys

import cwm_core as cwm
import pytest
from cwm_core.view import terminal
from hypothesis import given, settings
from hypothesis import strategies as st

LOOP = "def f(n):\n    s = 0\n    while n:\n        n -= 1\n        s += 10 ** 70\n    return s\n"
HOSTILE = "class E:\n    def __repr__(self):\n        return text\ntext = {!r}\ndef f(e):\n    return e\n"


def parsed(trace: cwm.Trace, *edits: tuple[str, str]) -> cwm.ParsedTrace:
    text = trace.to_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return cwm.Trace.parse(text)


def test_frames() -> None:
    trace = cwm.record_source("def f(n):\n    s = 'a'\n    return s * n\n", "f(2)")
    assert terminal(trace, width=60) == (
        "7 frames, returned 'aa'\n"
        "  0 call      6  def main():\n"
        "  1 line      7      return f(2)\n"
        "  2 call      2  def f(n):              n = 2\n"
        "  3 line      3      s = 'a'\n"
        "  4 line      4      return s * n       s = 'a'\n"
        "  5 return    4      return s * n       -> 'aa'\n"
        "  6 return    7      return f(2)        -> 'aa'\n"
    )


def test_variables_that_do_not_fit_take_a_second_row() -> None:
    trace = cwm.record_source(LOOP, "f(1)")
    rows = terminal(trace, width=60).splitlines()
    row = next(i for i, row in enumerate(rows) if "s = 1000" in row)
    assert rows[row - 1].endswith("while n:")
    assert rows[row].endswith("0...") and len(rows[row]) == 60


def test_prediction() -> None:
    trace = cwm.record_source("def f(n):\n    s = 'a'\n    return s * n\n", "f(2)")
    prediction = parsed(trace, ("""{"n": "..", "s": "'a'"}""", """{"n": "3", "t": "'a'"}"""), ("\"'aa'\"", '"1"'))
    assert terminal(trace, predicted=prediction, width=60, start=3, limit=3) == (
        "7 frames, returned 'aa'\n"
        "7 frames predicted, 2 of 7 differ, first at 4\n"
        "  3 line      3      s = 'a'\n"
        "- 4 line      4      return s * n       n = .., s = 'a'\n"
        "+ 4 line             return s * n       n = 3, t = 'a'\n"
        "?                n; missing s; extra t\n"
        "- 5 return    4      return s * n       -> 'aa'\n"
        "+ 5 return           return s * n       -> 1\n"
        "?                value\n"
        "1 more\n"
    )


def test_missing_and_extra_frames() -> None:
    trace = cwm.record_source("def f():\n    return 1\n", "f()")
    shorter = cwm.Trace.parse(trace.to_text().split("<|return_sep|>")[0])
    rows = terminal(trace, predicted=shorter, width=60).splitlines()
    assert [row[:3] for row in rows[2:]] == ["  0", "  1", "  2", "  3", "- 4", "- 5"]
    rows = terminal(shorter.trace, predicted=trace, width=60).splitlines()
    assert [row[:3] for row in rows[2:]] == ["  0", "  1", "  2", "  3", "+ 4", "+ 5"]


def test_equal_frames_take_one_row_beside_a_prediction() -> None:
    trace = cwm.record_source(LOOP, "f(3)")
    rows = terminal(trace, predicted=trace, width=60).splitlines()
    assert len(rows) == 2 + len(trace)
    assert all(len(row) <= 60 for row in rows)


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=60), st.integers(0, 130))
def test_nothing_but_printable_text_within_the_width(text: str, width: int) -> None:
    trace = cwm.record_source(HOSTILE.format(text), "f(E())")
    other = cwm.record_source(HOSTILE.format("other"), "f(E())")
    for shown in (terminal(trace, width=width), terminal(trace, predicted=other, width=width)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", shown)
        assert shown.encode()
        if text.isascii():
            assert all(len(row) <= max(width, 40) for row in shown.split("\n"))


def test_wide_characters_take_two_columns() -> None:
    cells = pytest.importorskip("rich.cells")
    trace = cwm.record_source(f"def f(s):\n    return s + {'漢字' * 40!r}\n", f"f({'かな' * 40!r})")
    for width in (60, 61, 100):
        assert all(cells.cell_len(row) <= width for row in terminal(trace, width=width).splitlines())


def test_color(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = cwm.record_source(LOOP, "f(2)")
    prediction = parsed(trace, ('"n": "1"', '"n": "7"'))
    plain = terminal(trace, predicted=prediction, width=80, color=False)
    colored = terminal(trace, predicted=prediction, width=80, color=True)
    assert "\x1b" not in plain
    assert colored != plain
    assert re.sub(r"\x1b\[\d+m", "", colored) == plain

    monkeypatch.setattr(sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert terminal(trace, predicted=prediction, width=80) == colored
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal(trace, predicted=prediction, width=80) == plain


def test_no_color_without_a_terminal() -> None:
    assert "\x1b" not in terminal(cwm.record_source(LOOP, "f(2)"))


def test_part_of_a_trace() -> None:
    trace = cwm.record_source(LOOP, "f(5)")
    rows = terminal(trace, width=100, start=2, limit=3).splitlines()
    assert [row.split()[0] for row in rows[1:-1]] == ["2", "3", "4"]
    assert rows[-1] == f"{len(trace) - 5} more"
    assert len(terminal(trace, width=100, start=10**6).splitlines()) == 1
    with pytest.raises(ValueError, match="start=-1"):
        terminal(trace, start=-1)
    with pytest.raises(ValueError, match="limit=-1"):
        terminal(trace, limit=-1)


def test_no_frames() -> None:
    empty = cwm.Trace.parse("").trace
    assert terminal(empty) == "0 frames\n"
