"""Test the options of a recording: object state, the program's output, levels, limits."""

from __future__ import annotations

import io
import sys
import textwrap
import time
from typing import Any

import cwm_core as cwm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import programs

CLASSES = """
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y
class Slotted:
    __slots__ = ('a', 'b', '__dict__')
class Below(Slotted):
    __slots__ = ('c',)
class Shown:
    def __repr__(self):
        return 'shown'
class Empty:
    pass
class Meta(type):
    def __getattribute__(cls, name):
        raise LookupError
class Odd(metaclass=Meta):
    def __getattribute__(self, name):
        raise LookupError
"""


def last_state(code: str, **options: Any) -> dict[str, str]:
    """The variables before the last line of a function ``f`` of this body."""
    code = CLASSES + "def f():\n" + textwrap.indent(textwrap.dedent(code), "    ") + "    return\n"
    trace = cwm.Recorder(object_state=True, **options).record_source(code, "f()")
    assert trace.exception is None
    return trace.state(len(trace) - 3)


def test_plain_instances_show_their_attributes() -> None:
    code = """
    p = Point(1, 'a')
    nested = [Point(p, {2: p})]
    p.z = Empty()
    other = Shown()
    bare = object()
    odd = Odd()
    """
    assert last_state(code) == {
        "p": "Point(x=1, y='a', z=Empty())",
        "nested": "[Point(x=Point(x=1, y='a', z=Empty()), y={2: Point(x=1, y='a', z=Empty())})]",
        "other": "shown",
        "bare": "<object object>",
        "odd": "Odd()",
    }


def test_slots_come_first_and_unbound_ones_are_left_out() -> None:
    state = last_state("s = Below()\ns.c = 3\ns.a = 1\ns.other = 4\n")
    assert state == {"s": "Below(a=1, c=3, other=4)"}


def test_instances_within_themselves() -> None:
    state = last_state("p = Point(1, [])\np.x = p\np.y.append(p)\n")
    assert state == {"p": "Point(x=Point(...), y=[Point(...)])"}


def test_attributes_are_limited() -> None:
    assert last_state("p = Point(list(range(10 ** 5)), 2)\n", max_value_chars=20) == {
        "p": "Point(x=[0, 1, 2, 3," + "..."
    }


def test_a_changed_attribute_is_a_change() -> None:
    code = CLASSES + textwrap.dedent("""
        def f():
            p = Point(1, 2)
            p.y = 3
            del p.x
            p.x = 3
            p = Slotted()
            p.a = 3
            return p
    """)
    trace = cwm.Recorder(object_state=True).record_source(code, "f()")
    main = [frame.locals["p"] for frame in trace.frames if frame.locals and "p" in frame.locals]
    assert main == ["Point(x=1, y=2)", "Point(x=1, y=3)", "Point(y=3)", "Point(y=3, x=3)", "Slotted()", "Slotted(a=3)"]
    assert trace.result == "Slotted(a=3)"


def walked(value: Any, outer: tuple = ()) -> str:
    """``repr`` with attributes, by its definition."""
    if any(value is other for other in outer):
        return {list: "[...]", dict: "{...}"}.get(type(value), f"{type(value).__name__}(...)")
    outer = (*outer, value)
    if isinstance(value, list):
        return f"[{', '.join(walked(item, outer) for item in value)}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{walked(k, outer)}: {walked(v, outer)}" for k, v in value.items()) + "}"
    if type(value).__name__ == "Point":
        return "Point(" + ", ".join(f"{name}={walked(v, outer)}" for name, v in vars(value).items()) + ")"
    return repr(value)


class Point:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def values() -> st.SearchStrategy[Any]:
    names = st.sampled_from(["x", "y", "é", "long_name"])
    atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    keys = st.integers() | st.text()
    return st.recursive(
        atoms,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(keys, inner)
            | st.dictionaries(names, inner).map(lambda attributes: Point(**attributes))
        ),
        max_leaves=20,
    )


def shows(steps: list[Any]) -> None:
    for value in steps:  # noqa: B007
        pass


@given(steps=st.lists(values(), max_size=6), attributes=st.booleans(), limit=st.integers(0, 60) | st.just(1000))
def test_random_values_one_after_the_other(steps: list[Any], attributes: bool, limit: int) -> None:
    """Each value is shown as its text is, and as unchanged only after the same text, whatever was there before."""
    recorder = cwm.Recorder(object_state=attributes, max_value_chars=limit)
    trace = recorder.record(shows, steps)
    texts = [walked(value) if attributes else cwm_text(value) for value in steps]
    texts = [text if len(text) <= limit else text[:limit] + "..." for text in texts]
    body = shows.__code__.co_firstlineno + 2
    states = zip(trace.frames, trace.states(), strict=True)
    shown = [(frame.locals["value"], state["value"]) for frame, state in states if frame.lineno == body]
    assert [state for _, state in shown] == texts
    written = [text if i == 0 or text != texts[i - 1] else ".." for i, text in enumerate(texts)]
    # The frame of the `for` line in between shows the value too, and so a change first.
    assert all(frame in (text, "..") for (frame, _), text in zip(shown, written, strict=True))


def cwm_text(value: Any) -> str:
    import oracle

    return oracle.render(value, 10**6)


def prints(stream: str) -> None:
    print("one é", end="\r\n")
    getattr(sys, stream).write("two")
    sys.stdout.buffer.write(b"\xff!")


def test_output_is_kept_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    trace = cwm.Recorder(capture_output=True).record(prints, "stdout")
    assert trace.output == "one é\r\ntwo\ufffd!"
    assert capsys.readouterr().out == ""
    assert cwm.Trace.from_bytes(trace.to_bytes()).output == trace.output
    assert cwm.record(shows, []).output is None
    with pytest.raises(ValueError, match="block"), cwm.Recorder(capture_output=True):
        pass


def closes_its_output() -> None:
    print("kept")
    sys.stdout.close()
    raise KeyError


def replaces_its_output() -> None:
    print("kept")
    sys.stdout = io.StringIO()
    print("elsewhere")


@pytest.mark.parametrize("program", [closes_its_output, replaces_its_output])
def test_output_of_unruly_programs(program: Any) -> None:
    before = sys.stdout
    trace = cwm.Recorder(capture_output=True).record(program)
    assert trace.output == "kept\n"
    assert sys.stdout is before


LEVELS = [{"calls_only": True}, {"max_depth": 1}, {"max_depth": 2}, {"calls_only": True, "max_depth": 3}]


@given(code=programs, level=st.sampled_from(LEVELS))
def test_levels_are_those_of_coarser_traces(code: str, level: dict[str, Any]) -> None:
    try:
        full = cwm.Recorder(max_frames=3000).record_source(code, "f(1, [2], 's')")
        again = cwm.Recorder(max_frames=3000).record_source(code, "f(1, [2], 's')")
    except SyntaxError:
        return
    if full.truncated or full != again:
        return
    assert cwm.Recorder(**level).record_source(code, "f(1, [2], 's')") == full.coarsen(**level)


@pytest.mark.parametrize("limit", ["max_frames", "max_bytes", "max_depth", "max_value_chars"])
def test_limits_are_checked(limit: str) -> None:
    with pytest.raises(ValueError, match=f"{limit} must be at least [01], got -1"):
        cwm.Recorder(**{limit: -1})
    with pytest.raises(TypeError, match=f"{limit} must be an integer"):
        cwm.Recorder(**{limit: 2.5})
    with pytest.raises(TypeError, match=r"max_value_chars must be an integer, got None"):
        cwm.Recorder(max_value_chars=None)


def test_limits_may_be_any_integers() -> None:
    assert len(cwm.Recorder(max_frames=np.int64(2)).record(shows, [])) == 2
    assert cwm.Recorder(max_frames=10**30, max_bytes=10**30, max_depth=2**64).record(shows, []).truncated is None
    assert cwm.Recorder(max_frames=0).record(shows, []).truncated == "max_frames"


def test_levels_are_checked() -> None:
    with pytest.raises(ValueError, match="max_depth must be at least 1"):
        cwm.Recorder(max_depth=0).record(shows, [])


NO_EVENTS = {
    "a loop on one line": "def f():\n    while True: pass\n",
    "a loop that catches everything": """
        def f():
            while True:
                try:
                    while True: pass
                except BaseException: pass
    """,
    "a repr that does not end": """
        class Endless:
            def __repr__(self):
                while True:
                    pass
        def f():
            e = Endless()
            return 1
    """,
}


@pytest.mark.parametrize("name", NO_EVENTS)
def test_max_seconds_stops_programs_without_events(name: str) -> None:
    begin = time.monotonic()
    trace = cwm.Recorder(max_seconds=0.1).record_source(textwrap.dedent(NO_EVENTS[name]), "f()")
    assert trace.truncated == "max_seconds" and len(trace) >= 3
    assert trace.result is None and trace.exception is None
    assert time.monotonic() - begin < 20


def test_nothing_is_raised_after_the_recording() -> None:
    for _ in range(20):
        cwm.Recorder(max_seconds=0.001).record_source("def f():\n    while True: pass\n", "f()")
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        pass


def test_time_that_is_not_used_up() -> None:
    trace = cwm.Recorder(max_seconds=1000).record(shows, [1, 2])
    assert trace.truncated is None and trace.result == "None"
