"""Differences between real and predicted frames."""

from typing import NamedTuple

import cwm_core as cwm
import pytest
from cwm_core.view import Difference, differences
from cwm_core.view.diff import outcome, verdict
from hypothesis import given
from hypothesis import strategies as st


class Frame(NamedTuple):
    event: str
    locals: dict[str, str] | None
    line: str
    arg: str | None = None
    lineno: int | None = None


LINE = Frame("line", {"a": "1", "b": ".."}, "x = 1\n")
RETURN = Frame("return", None, "return x\n", "1")

VARIABLES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["..", "1", "2"]))
SOURCE = st.sampled_from(["x = 1\n", "return x\n"])
FRAMES = st.one_of(
    st.builds(Frame, st.sampled_from(["call", "line"]), VARIABLES, SOURCE, st.none(), st.none()),
    st.builds(Frame, st.sampled_from(["return", "exception"]), st.none(), SOURCE, st.sampled_from("12"), st.none()),
)


@pytest.mark.parametrize(
    ("real", "predicted", "expected", "words"),
    [
        (LINE, LINE._replace(event="call"), Difference(0, event=True), "event"),
        (LINE, LINE._replace(line="x = 2\n"), Difference(0, line=True), "line"),
        (RETURN, RETURN._replace(arg="2"), Difference(0, value=True), "value"),
        (LINE, LINE._replace(locals={"a": "2", "b": ".."}), Difference(0, changed=("a",)), "a"),
        (LINE, LINE._replace(locals={"a": "1", "b": "1"}), Difference(0, changed=("b",)), "b"),
        (
            LINE,
            LINE._replace(locals={"c": "1", "b": "..", "d": "2"}),
            Difference(0, missing=("a",), extra=("c", "d")),
            "missing a; extra c, d",
        ),
        (
            LINE,
            RETURN,
            Difference(0, event=True, line=True, value=True, missing=("a", "b")),
            "event; line; value; missing a, b",
        ),
    ],
)
def test_one_frame(real: Frame, predicted: Frame, expected: Difference, words: str) -> None:
    assert differences([real], [predicted]) == [expected]
    assert str(expected) == words


def test_order_of_variables_and_line_numbers_do_not_count() -> None:
    assert differences([LINE._replace(lineno=7)], [LINE._replace(locals={"b": "..", "a": "1"})]) == []


def test_missing_and_extra_frames() -> None:
    assert differences([LINE, RETURN], [LINE]) == [Difference(1, frame="missing")]
    assert differences([LINE], [LINE, RETURN]) == [Difference(1, frame="extra")]
    assert str(Difference(1, frame="extra")) == "extra frame"


@given(st.lists(FRAMES), st.lists(FRAMES))
def test_differ_exactly_where_contents_differ(real: list[Frame], predicted: list[Frame]) -> None:
    found = differences(real, predicted)
    shared = min(len(real), len(predicted))
    unequal = [i for i in range(max(len(real), len(predicted))) if i >= shared or real[i] != predicted[i]]
    assert [difference.index for difference in found] == unequal
    for difference, mirrored in zip(found, differences(predicted, real), strict=True):
        assert (difference.missing, difference.extra) == (mirrored.extra, mirrored.missing)
        assert sorted(difference.changed) == sorted(mirrored.changed)


def test_a_trace_does_not_differ_from_its_own_text() -> None:
    trace = cwm.record_source("def f(n):\n    return [i for i in range(n)]", "f(4)")
    assert differences(trace.frames, cwm.Trace.parse(trace.to_text()).frames) == []


def test_sentences() -> None:
    trace = cwm.record_source("def f():\n    raise KeyError(1)", "f()")
    assert outcome(trace) == f"{len(trace)} frames, raised KeyError(1)"
    text = trace.to_text()
    assert verdict(trace, cwm.Trace.parse(text), []) == f"{len(trace)} frames predicted, no difference"
    cut = cwm.Trace.parse(text[: text.rindex("<|frame_sep|>")])
    found = differences(trace.frames, cut.frames)
    last = len(trace) - 1
    assert verdict(trace, cut, found) == (
        f"{last} frames predicted, 1 of {len(trace)} differ, first at {last}; "
        f"parsing stopped at offset {cut.error_offset}: {cut.error}"
    )
    whole = text.removesuffix("<|end_of_text|>")
    assert verdict(trace, cwm.Trace.parse(whole), []).endswith(
        "it stopped between two frames, before the end of the trace"
    )


def test_limits_are_said() -> None:
    trace = cwm.Recorder(max_frames=3).record_source("def f():\n    while True: pass", "f()")
    assert outcome(trace).startswith("3 frames, recording ended by max_frames")
