"""The debugger of predicted execution, against recordings that a scripted model knows."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import warnings

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.corpus.generator import generate
from cwm_core.debugger import Debugger, DebuggerError, EngineFrames, SourceError
from cwm_core.debugger.debugger import Stop
from cwm_core.inference import Engine
from cwm_core.inference.lines import ProgramLines
from debugging import CALL, CODE, END, FRAME_SEP, TOKENIZER, Recorded, debugger, encoded, stacks
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from programs import programs
from random_models import random_model
from readme import ROOT, examples

SANDBOX = "bubblewrap" if cwm.machines.bubblewrap_refusal() is None else "process"


def check_whole_trace(code, call):
    subject, trace = debugger(code, call)
    around = stacks(trace)
    for index, frame in enumerate(trace.frames):
        step = subject.current
        assert (step.index, subject.position) == (index, index)
        assert (step.frame.event, step.frame.locals, step.frame.line, step.frame.arg) == (
            frame.event,
            frame.locals,
            frame.line,
            frame.arg,
        )
        if frame.locals is not None:
            assert subject.locals() == trace.state(index)
        assert [scope.entry for scope in subject.where()] == around[index][::-1]
        assert step.scope.depth == len(around[index])
        if frame.lineno is not None:  # a recording counts the empty line before the code
            assert frame.lineno - 1 in step.scope.lines
        stop = subject.step()
        assert stop.reason == ("step" if index + 1 < len(trace) else "end")
    assert subject.finished and np.array_equal(np.append(subject.ids, END), encoded(trace))
    # The variables of every caller are those of its last frame that showed them.
    for index, entries in enumerate(around):
        for level, entry in enumerate(reversed(entries)):
            shown = max(
                i
                for i in range(index + 1)
                if around[i][-1] == entry
                and len(around[i]) == len(entries) - level
                and trace.frames[i].locals is not None
            )
            assert subject.locals(index, level) == trace.state(shown)


def test_calls_exceptions_and_generators():
    check_whole_trace(CODE, CALL)


@given(programs)
@settings(max_examples=25)
def test_random_programs(code):
    with warnings.catch_warnings(action="ignore"):
        try:
            compile(code, "<program>", "exec")
        except SyntaxError:
            return
        check_whole_trace(code, "f(1, 's', [2])")


@pytest.mark.parametrize("seed", range(30))
def test_generated_programs(seed):
    check_whole_trace(*generate(seed))


# ---- moving


def expected_next(trace, at):
    depths = [len(stack) for stack in stacks(trace)]
    return next((i for i in range(at + 1, len(trace)) if depths[i] <= depths[at]), None)


def expected_out(trace, at):
    if trace.frames[at].event == "return":
        return at + 1 if at + 1 < len(trace) else None
    depths = [len(stack) for stack in stacks(trace)]
    return next(
        (i for i in range(at + 1, len(trace)) if depths[i] == depths[at] and trace.frames[i].event == "return"), None
    )


def lands(subject, trace, stop, expected):
    """Check that a command arrived at a frame, or, for None, at the end of the trace."""
    assert stop.reason == ("end" if expected is None else "step")
    assert subject.position == (len(trace) - 1 if expected is None else expected)


def test_next_and_out_from_every_frame():
    subject, trace = debugger()
    for at in range(len(trace)):
        for command, expected in (("next", expected_next), ("out", expected_out)):
            while subject.position < at:
                subject.step()
            lands(subject, trace, getattr(subject, command)(), expected(trace, at))
            subject.back(subject.position - at)


class Session(RuleBasedStateMachine):
    """Compare any sequence of commands with a model of the debugger: a position and the number of known frames."""

    @initialize(seed=st.integers(0, 40), written=st.booleans())
    def begin(self, seed, written):
        self.debugger, self.trace = debugger() if written else debugger(*generate(seed))
        self.ids = encoded(self.trace)
        self.at, self.known = 0, 1

    def forward(self, stop, expected):
        arrived = [i for i in range(self.at + 1, len(self.trace)) if self.stops(i)]
        if arrived and (expected is None or arrived[0] <= expected):
            assert stop.reason == "breakpoint"
            expected = arrived[0]
        else:
            assert stop.reason == ("end" if expected is None else "step")
        self.at = len(self.trace) - 1 if expected is None else expected
        self.known = max(self.known, self.at + 1)

    def stops(self, index):
        """Return whether a frame is at a breakpoint, by the line numbers of the recording."""
        frame = self.trace.frames[index]
        return frame.event in ("call", "line") and frame.lineno - 1 in self.debugger.breakpoints

    @rule()
    def step(self):
        expected = self.at + 1 if self.at + 1 < len(self.trace) else None
        self.forward(self.debugger.step(), expected)

    @rule()
    def next(self):
        self.forward(self.debugger.next(), expected_next(self.trace, self.at))

    @rule()
    def out(self):
        self.forward(self.debugger.out(), expected_out(self.trace, self.at))

    @rule(choice=st.integers(0, 1000))
    def continue_to(self, choice):
        line = self.a_line(choice)
        frames = enumerate(self.trace.frames)
        found = (i for i, f in frames if i > self.at and f.event in ("call", "line") and f.lineno - 1 == line)
        self.forward(self.debugger.continue_to(line), next(found, None))

    @rule(n=st.integers(0, 30))
    def back(self, n):
        self.debugger.back(n)
        self.at = max(self.at - n, 0)

    @rule()
    def back_to_breakpoint(self):
        self.debugger.back_to_breakpoint()
        self.at = next((i for i in reversed(range(self.at)) if self.stops(i)), 0)

    @rule(choice=st.integers(0, 1000))
    def break_at(self, choice):
        self.debugger.break_at(self.a_line(choice))

    @precondition(lambda self: self.debugger.breakpoints)
    @rule()
    def clear(self):
        self.debugger.breakpoints.clear()

    @rule(temperature=st.sampled_from([None, 0.0, 0.5]))
    def restart(self, temperature):
        self.debugger.restart(temperature=temperature)
        self.known = self.at + 1

    def a_line(self, choice):
        """Draw a line that the trace reaches and whose text occurs once in the program."""
        texts = self.debugger.program.texts
        lines = sorted({f.lineno - 1 for f in self.trace.frames if texts.count(f.line) == 1})
        return lines[choice % len(lines)]

    @invariant()
    def agrees(self):
        if not hasattr(self, "debugger"):
            return
        assert self.debugger.position == self.at and len(self.debugger.steps) == self.known
        assert np.array_equal(self.debugger.ids, self.ids[: len(self.debugger.ids)])
        if self.trace.frames[self.at].locals is not None:
            assert self.debugger.locals() == self.trace.state(self.at)


TestSession = Session.TestCase
TestSession.settings = settings(max_examples=40, stateful_step_count=25)


def test_going_forward_again_predicts_nothing():
    subject, trace = debugger()
    while subject.step().reason != "end":
        pass
    calls = len(subject.source.calls)
    assert calls == len(trace)
    subject.back(10**9)
    assert subject.position == 0
    assert subject.continue_to().reason == "end" and len(subject.source.calls) == calls
    assert subject.step() == Stop("end", "the predicted program has ended") and len(subject.source.calls) == calls


def test_breakpoints_count_hits():
    subject, trace = debugger()
    arrivals = [i for i, f in enumerate(trace.frames) if f.line == "    if n == 0:\n" and f.event == "line"]
    subject.break_at(2, ignore=2)
    assert subject.continue_to().reason == "breakpoint" and subject.position == arrivals[2]
    assert subject.breakpoints[2].hits == 3
    assert subject.next().reason == "step" and subject.out().reason == "step"
    assert subject.continue_to().reason == "breakpoint" and subject.position == arrivals[3]
    with pytest.raises(DebuggerError, match="no frame can be on line 5"):
        subject.break_at(5)
    with pytest.raises(DebuggerError, match="no frame can be on line 999"):
        subject.continue_to(999)


def test_a_breakpoint_on_a_def_stops_at_the_call():
    subject, _ = debugger()
    subject.break_at(1)
    assert subject.continue_to().reason == "breakpoint"
    assert (subject.current.frame.event, subject.locals()) == ("call", {"n": "1"})


AMBIGUOUS = """\
def f(n):
    if n:
        m = 0
        n += 1
    else:
        m = 1
        n += 1
    n += 1
    return n

def g(n):
    n += 1
    return f(n) and f(0)
"""


def test_lines_of_equal_text_are_distinguished_by_the_previous_line():
    subject, trace = debugger(AMBIGUOUS, "g(0)")
    for frame in trace.frames:
        assert subject.current.scope.lines == (frame.lineno - 1,)
        subject.step()
    assert [scope.function for scope in subject.where()] == ["main"]


def test_indistinguishable_lines_are_all_named():
    code = "def f(n):\n    if n:\n        a = 1\n    else:\n        a = 1\n    return a\n"
    subject, _ = debugger(code, "f(0)")
    subject.break_at(3)  # it is line 5 that runs
    assert subject.continue_to().reason == "breakpoint" and subject.current.scope.lines == (3, 5)


def test_lines_that_the_program_does_not_have():
    lines = ProgramLines("\ndef f():\n    return 1\n\ndef main():  # << START_OF_TRACE\n    return f()\n")
    places = lines.call("def main():\n")
    assert lines.name(places) == "main" and [line for _, line in places] == [4]
    assert [line for _, line in lines.follow(places, "    nonsense\n")] == [-1]
    assert lines.name(lines.follow(places, "    nonsense\n")) == "main"
    assert lines.name(lines.call("def other():\n")) == "?"
    broken = ProgramLines("\ndef f(:\n    return 1\n\ndef main():\n    return f()\n")
    assert [line for _, line in broken.call("    return 1\n")] == [2]
    assert broken.can_stop(2) and not broken.can_stop(3) and not broken.can_stop(99)


# ---- values


def test_print_looks_up_and_evaluates_nothing():
    code = "def f(a, d, o):\n    return a\n"
    subject, _ = debugger(code, "f([1, 'x', (2, [3])], {'k': {'l': None}}, len)")
    subject.continue_to(2)
    assert subject.print("a") == "[1, 'x', (2, [3])]" and subject.print(" a[1] ") == "'x'"
    assert subject.print("a[-1][1][0]") == "3" and subject.print("d['k']['l']") == "None"
    assert subject.print("o") == "<built-in function len>"
    for expression in ("a.append(1)", "len(a)", "a[b]", "a[0:1]", "1", "", "a +", "a[" * 10_000, "\0"):
        with pytest.raises(DebuggerError):
            subject.print(expression)
    for expression, why in (
        ("b", "no variable 'b' here; variables: a, d, o"),
        ("a[9]", "out of range"),
        ("o[0]", "no"),
    ):
        with pytest.raises(DebuggerError, match=why):
            subject.print(expression)
    assert subject.print("a", 0) == subject.locals()["a"] and subject.locals(level=1) == {}
    for frame, level in ((None, 2), (None, -1), (99, 0), (-1, 0)):
        with pytest.raises(DebuggerError, match="there is no"):
            subject.locals(frame, level)


def test_set_changes_one_frame_and_what_follows_refers_to_it():
    subject, trace = debugger()
    subject.break_at(8)
    subject.continue_to()
    subject.breakpoints.clear()
    at, known = subject.position, len(subject.steps)
    subject.step()
    subject.back()
    before = subject.current
    subject.set("total", "41")
    assert (subject.position, len(subject.steps), known) == (at, at + 1, at + 1)
    assert subject.current.is_edited and subject.current.probability is None
    written = trace.frames[at].locals | {"total": "41"}
    assert subject.current.frame.locals == written and subject.locals() == trace.state(at) | {"total": "41"}
    state = TOKENIZER.encode(json.dumps(written))
    action = list(before.ids).index(TOKENIZER.special_tokens["<|action_sep|>"])
    assert np.array_equal(subject.current.ids, np.concatenate([before.ids[:1], state, before.ids[action:]]))
    subject.step()  # the model writes `..` for total
    assert subject.locals()["total"] == "41" and subject.current.frame.locals["total"] == ".."
    whole = TOKENIZER.parse_trace(subject.ids)
    assert whole.error is None and whole.trace.state(at + 1) == subject.locals()


def test_a_value_set_back_is_written_as_unchanged():
    subject, _ = debugger("def f(n):\n    n\n    return n\n", "f(5)")
    subject.continue_to(3)
    ids = subject.ids
    subject.set("n", "6")
    assert subject.current.frame.locals == {"n": "6"}
    subject.set("n", "5")
    assert subject.current.frame.locals == {"n": ".."} and np.array_equal(subject.ids, ids)


def test_variables_that_cannot_be_set():
    subject, _ = debugger()
    subject.continue_to(4)
    for name, value, why in (("m", "1", "no variable 'm' here"), ("n", "..", "cannot be"), ("n", "", "cannot be")):
        with pytest.raises(DebuggerError, match=why):
            subject.set(name, value)
    subject.out()
    with pytest.raises(DebuggerError, match="a return frame has no variables to set"):
        subject.set("n", "1")


def test_a_value_may_be_any_text():
    subject, _ = debugger("def f(n):\n    return n\n", "f(5)")
    subject.continue_to(2)
    for value in ("<|frame_sep|>", '"\\', "é\ud800", "x" * 3000):
        subject.set("n", value)
        assert subject.locals() == {"n": value} and subject.continue_to().reason == "end"
        subject.back(2)


def test_unchanged_with_nothing_to_refer_to():
    subject, _ = debugger("def f(n):\n    return n\n", "f(5)")
    subject.source.replaced[2] = TOKENIZER.encode(
        '<|call_sep|>{"n": ".."}<|action_sep|>def f(n):\n<|frame_sep|>', allowed_special="all"
    )
    subject.continue_to(2)
    assert subject.locals() == {"n": ".."}


def test_frames_outside_any_activation():
    subject, trace = debugger("def f(n):\n    return n\n", "f(5)")
    stray = TOKENIZER.encode('<|line_sep|>{"n": "1"}<|action_sep|>x\n<|frame_sep|>', allowed_special="all")
    again = TOKENIZER.encode('<|line_sep|>{"n": ".."}<|action_sep|>x\n<|frame_sep|>', allowed_special="all")
    subject.source.frames[len(trace) :] = [stray, again, stray, subject.source.frames[-2], np.array([END])]
    subject.continue_to()
    assert [step.scope.depth for step in subject.steps][-5:] == [1, 0, 0, 0, 0]
    assert subject.locals(len(trace)) == {"n": "1"} and subject.locals(len(trace) + 1) == {"n": ".."}
    assert subject.finished and len(subject.where()) == 1


def test_coarser_traces():
    trace = cwm.record_source(CODE, CALL).coarsen(changes_only=True)
    subject = Debugger(Recorded(trace), TOKENIZER, CODE, CALL)
    for index in range(len(trace)):
        if trace.frames[index].locals is not None:
            assert subject.locals() == trace.state(index)
        subject.step()


# ---- samples, limits, damage


def test_another_sample():
    subject, _ = debugger()
    other = cwm.record_source(CODE, "f([2, 0, 3])")
    source = subject.source
    for index, frame in enumerate(Recorded(other).frames):
        source.replaced[index, 1.0] = frame
    subject.continue_to(3)
    at = subject.position
    subject.continue_to()
    seeds = [seed for _, seed, _ in source.calls]
    assert len(set(seeds)) == len(seeds) and {t for _, _, t in source.calls} == {0.0}
    subject.back(subject.position - 5)
    stop = subject.restart()
    assert (stop.message, len(subject.steps)) == ("sample 1 at temperature 1", 6)
    subject.step()
    assert source.calls[-1][0] == 6 and source.calls[-1][2] == 1.0 and source.calls[-1][1] not in seeds
    subject.restart(7, 0.0, frame=0)
    assert (subject.position, len(subject.steps), subject.seed, subject.temperature) == (0, 1, 7, 0.0)
    subject.continue_to(3)
    assert subject.position == at
    with pytest.raises(DebuggerError, match="there is no frame 999"):
        subject.restart(frame=999)


def test_limits():
    subject, trace = debugger(max_frames=4)
    for _ in range(2):
        assert subject.continue_to().reason == "limit"
    assert subject.position == 8
    subject.max_frames, subject.max_tokens = 1000, 1
    assert subject.next().reason in ("step", "limit") and subject.position == 9
    subject.max_tokens = 10**6
    assert subject.continue_to().reason == "end" and subject.position == len(trace) - 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('<|line_sep|>{"n": 1}<|action_sep|>x\n<|frame_sep|>', "frame 3 is not a frame: .* expected a JSON string"),
        ("<|line_sep|>{}<|frame_sep|>", r"missing <\|action_sep\|> after the locals"),
        ("<|line_sep|>{}<|action_sep|>x", "cut after"),
        ("", "cut after 0 tokens"),
        ("<|line_sep|>{}<|action_sep|>x\n<|frame_sep|>" * 2, "expected one frame, got 2"),
        ("<|line_sep|>{}<|action_sep|>x\n<|frame_sep|><|end_of_text|>", "expected one frame, got 1"),
        ("nonsense<|end_of_text|>", "frame 3 is not a frame"),
    ],
)
def test_malformed_frames_are_reported_and_can_be_tried_again(text, why):
    subject, trace = debugger()
    subject.source.replaced[3, 0.0] = TOKENIZER.encode(text, allowed_special="all")
    stop = subject.continue_to()
    assert stop.reason == "malformed" and subject.position == 2 and len(subject.steps) == 3
    assert re.search(why, stop.message), stop.message
    calls = len(subject.source.calls)
    assert subject.step() == stop and len(subject.source.calls) == calls  # the same sample says the same
    subject.back()
    subject.step()
    subject.set("xs", "[9]")
    assert subject.step().reason == "malformed"
    subject.restart(temperature=0.5)
    assert subject.step().reason == "step" and subject.continue_to().reason == "end"
    assert subject.position == len(trace) - 1


@given(st.lists(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(0, 520)), max_size=20))
def test_any_tokens(ids):
    subject, _ = debugger()
    subject.source.replaced[2] = np.array(ids, np.int32)
    stop = subject.continue_to()
    assert stop.reason in ("malformed", "end", "step") and subject.position >= 1
    assert len(stop.message) < 3000


def test_an_error_of_the_source_loses_nothing():
    subject, trace = debugger()
    subject.step()

    class Failing:
        def next_frame(self, ids, seed, temperature):
            raise SourceError("no connection")

    source, subject.source = subject.source, Failing()
    with pytest.raises(SourceError, match="no connection"):
        subject.continue_to()
    assert subject.position == 1
    subject.source = source
    assert subject.continue_to().reason == "end" and len(subject.steps) == len(trace)


class Endless:
    """A loop that never ends."""

    def next_frame(self, ids, seed, temperature):
        time.sleep(0.001)
        frame = TOKENIZER.encode("<|line_sep|>{}<|action_sep|>    x\n<|frame_sep|>", allowed_special="all")
        return frame, np.zeros(len(frame), np.float32)


def test_an_endless_loop_is_interrupted_between_frames():
    subject = Debugger(Endless(), TOKENIZER, "def f():\n    x\n", "f()", max_frames=10**9)
    threading.Timer(0.2, subject.interrupt.set).start()
    assert subject.continue_to().reason == "paused"
    assert len(subject.steps) == subject.position + 1 > 2
    assert subject.step().reason == "step"  # the flag is spent
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        subject.continue_to()
    assert subject.current is subject.steps[-1] and subject.step().reason == "step"


def test_probabilities():
    subject, _ = debugger()
    assert subject.current.probability is None
    subject.step()
    assert subject.current.probability == pytest.approx(np.exp(-0.01 * len(subject.current.ids)), rel=1e-5)


# ---- an engine


@pytest.fixture(scope="module")
def engine():
    config = cwm.model.preset(
        "tiny", vocab_size=TOKENIZER.vocab_size, hidden_size=32, num_hidden_layers=2, max_position_embeddings=700
    )
    return Engine(random_model(config), TOKENIZER)


def test_a_random_model(engine):
    subject = Debugger(
        EngineFrames(engine, max_frame_tokens=30, constrained=False), TOKENIZER, CODE, CALL, temperature=1.0
    )
    stop = subject.continue_to()
    assert stop.reason == "malformed" and ", cut after 30 tokens" in stop.message
    subject.restart(0)
    assert subject.continue_to() == stop
    subject.restart(1)
    assert subject.continue_to() != stop


def test_constrained_frames_are_well_formed_or_cut(engine):
    """An untrained model gives no malformed frame, except one that exceeds the limit."""
    subject = Debugger(EngineFrames(engine, max_frame_tokens=60), TOKENIZER, CODE, CALL, temperature=1.0)
    reasons = []
    for seed in range(30):
        subject.restart(seed)
        reasons.append(subject.step())
    assert {stop.reason for stop in reasons} <= {"step", "end", "malformed"}
    assert all(", cut after 60 tokens" in stop.message for stop in reasons if stop.reason == "malformed")
    assert any(stop.reason == "step" for stop in reasons)


def test_an_engine_gives_whole_frames_as_it_generates_them(engine):
    prompt = cwm.inference.trace_prompt(TOKENIZER, CODE, CALL)
    frames = EngineFrames(engine, max_frame_tokens=100, constrained=False, top_p=0.5)
    ids, logprobs = frames.next_frame(prompt, 3, 2.0)
    stops = [FRAME_SEP, END]
    (expected,) = engine.generate([prompt], 100, stops, temperature=2.0, top_p=0.5, seed=3)
    assert np.array_equal(ids, expected.ids) and np.array_equal(logprobs, expected.logprobs)


def test_a_full_context(engine):
    frames = EngineFrames(engine, constrained=False)
    ids, _ = frames.next_frame(np.zeros(690, np.int32), 0, 0.0)
    assert len(ids) <= 10
    with pytest.raises(SourceError, match="the model's context of 700 tokens is full"):
        frames.next_frame(np.zeros(700, np.int32), 0, 0.0)


def test_a_vocabulary_without_traces(engine):
    plain = cwm.Tokenizer.train([], 256, special_tokens=["<|frame_sep|>"])
    for make in (lambda: Debugger(Endless(), plain, CODE, CALL), lambda: EngineFrames(Engine(engine.model, plain))):
        with pytest.raises(ValueError, match=r"the vocabulary lacks .* a special token of the trace format"):
            make()
    with pytest.raises(ValueError, match="the engine has no tokenizer"):
        EngineFrames(Engine(engine.model))


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs/guides/debug.md").read_text()
    code = page[page.index("def f(t):") : page.index("```", page.index("def f(t):"))]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "turn.py").write_text(code)
    source = Recorded(cwm.record_source(code, "f([6, 1])"))
    monkeypatch.setattr(cwm.Tokenizer, "load", lambda path: TOKENIZER)
    monkeypatch.setattr(cwm.model, "load", lambda path: None)
    monkeypatch.setattr(cwm.inference, "Engine", lambda model, tokenizer: None)
    monkeypatch.setattr(cwm.debugger, "EngineFrames", lambda engine: source)
    (example,) = examples("docs/guides/debug.md")
    exec(example, {})
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"4 {lines[0].split()[1]} {{'t': '[6, 1]'}} ['f', 'main']"]


# ---- reality


def test_verify_a_right_prediction():
    subject, trace = debugger()
    found = subject.verify(sandbox=SANDBOX)
    assert found.difference is None and found.compared == 1
    while subject.step().reason == "step":
        if subject.position % 10 == 0:
            found = subject.verify(sandbox=SANDBOX)
            assert found.difference is None and found.compared == subject.position + 1
    found = subject.verify(sandbox=SANDBOX)
    assert str(found) == f"{len(trace)} frames equal the real execution" and found.real == cwm.record_source(CODE, CALL)


def test_verify_says_the_first_departure():
    subject, _ = debugger()
    subject.continue_to(8)
    subject.set("total", "41")
    at = subject.position
    subject.continue_to()
    found = subject.verify(sandbox=SANDBOX)
    assert (found.difference.index, found.difference.changed) == (at, ("total",))
    assert str(found) == f"frame {at} differs from the real execution: total"


def test_verify_says_a_wrong_length():
    subject, trace = debugger()
    subject.source.frames[5] = np.array([END], np.int32)
    subject.continue_to()
    found = subject.verify(sandbox=SANDBOX)
    assert (found.difference.index, found.difference.frame) == (5, "missing")
    subject, trace = debugger()
    subject.source.frames.insert(len(trace), subject.source.frames[-2])
    subject.continue_to()
    found = subject.verify(sandbox=SANDBOX)
    assert (found.difference.index, found.difference.frame) == (len(trace), "extra")


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise ValueError('no')\ndef f():\n    pass\n", "raised before the call"),
        ("import os\nos._exit(3)\ndef f():\n    pass\n", "left no trace"),
        ("import os\nos.mkfifo('real.cwmtrace')\nos._exit(0)\n", "left no trace"),
        ("import os\nos.symlink('/etc/passwd', 'real.cwmtrace')\nos._exit(0)\n", "left no trace"),
        ("import os\nopen('real.cwmtrace', 'w').write('x')\nos._exit(0)\n", "left no trace"),
        ("while True:\n    pass\ndef f():\n    pass\n", "limit: seconds"),
    ],
)
def test_verify_programs_that_give_no_trace(code, why):
    subject = Debugger(Endless(), TOKENIZER, code, "f()")
    with pytest.raises(DebuggerError, match=why):
        subject.verify(sandbox=SANDBOX, limits=cwm.machines.Limits(seconds=2.0))


def test_verify_an_endless_program():
    code = "def f():\n    while True:\n        x = 1\n"
    trace = cwm.Recorder(max_frames=50).record_source(code, "f()")
    subject = Debugger(Recorded(trace), TOKENIZER, code, "f()")
    for _ in range(40):
        subject.step()
    found = subject.verify(sandbox=SANDBOX, limits=cwm.machines.Limits(seconds=4.0))
    assert found.difference is None and found.compared == 41
