"""Traces from Python: views, text and stored forms, the strict parser against the oracle's."""

from __future__ import annotations

import json
import pickle

import cwm_core as cwm
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

CODE = "def f(n):\n    s = 'a'\n    while n:\n        n -= 1\n    return s * 2\n"


@pytest.fixture(scope="module")
def trace() -> cwm.Trace:
    return cwm.record_source(CODE, "f(1)")


def test_the_example_of_the_format(trace: cwm.Trace) -> None:
    assert trace.to_text() == (
        "<|begin_of_text|><|trace_context_start|>\n" + CODE + "\ndef main():  # << START_OF_TRACE\n    return f(1)\n"
        "<|frame_sep|>"
        "<|call_sep|>{}<|action_sep|>def main():\n<|frame_sep|>"
        "<|line_sep|>{}<|action_sep|>    return f(1)\n<|frame_sep|>"
        '<|call_sep|>{"n": "1"}<|action_sep|>def f(n):\n<|frame_sep|>'
        '<|line_sep|>{"n": ".."}<|action_sep|>    s = \'a\'\n<|frame_sep|>'
        '<|line_sep|>{"n": "..", "s": "\'a\'"}<|action_sep|>    while n:\n<|frame_sep|>'
        '<|line_sep|>{"n": "..", "s": ".."}<|action_sep|>        n -= 1\n<|frame_sep|>'
        '<|line_sep|>{"n": "0", "s": ".."}<|action_sep|>    while n:\n<|frame_sep|>'
        '<|line_sep|>{"n": "..", "s": ".."}<|action_sep|>    return s * 2\n<|frame_sep|>'
        "<|return_sep|><|action_sep|>    return s * 2\n<|arg_sep|>\"'aa'\"<|frame_sep|>"
        "<|return_sep|><|action_sep|>    return f(1)\n<|arg_sep|>\"'aa'\"<|frame_sep|><|end_of_text|>"
    )


def test_frames_and_states(trace: cwm.Trace) -> None:
    frame = trace.frames[6]
    assert (frame.event, frame.locals, frame.line, frame.lineno, frame.arg) == (
        "line",
        {"n": "0", "s": ".."},
        "    while n:\n",
        4,
        None,
    )
    assert trace.state(6) == {"n": "0", "s": "'a'"} == trace.states()[6]
    assert trace.state(-1) is None
    assert [frame.event for frame in trace.frames[-2:]] == ["return", "return"]
    assert len(list(trace.frames)) == len(trace.frames) == len(trace) == 10
    assert repr(frame) == "Frame(event='line', locals={'n': '0', 's': '..'}, line='    while n:\\n')"
    with pytest.raises(IndexError, match="frame index 10 is out of range for a trace of 10 frames"):
        trace.frames[10]


def test_stored_form_and_pickle(trace: cwm.Trace) -> None:
    data = trace.to_bytes()
    assert cwm.Trace.from_bytes(data) == trace == pickle.loads(pickle.dumps(trace))
    with pytest.raises(ValueError, match="checksum"):
        cwm.Trace.from_bytes(data[:-1])
    with pytest.raises(ValueError, match="the header is missing"):
        cwm.Trace.from_bytes(b"")


def test_save_and_load(trace: cwm.Trace, tmp_path) -> None:
    path = tmp_path / "one.cwmtrace"
    trace.save(path)
    assert cwm.Trace.load(path) == trace
    path.write_bytes(b"CWMTRACE")
    with pytest.raises(ValueError, match=r"one\.cwmtrace: not a valid stored trace"):
        cwm.Trace.load(path)


def test_lone_surrogates_in_a_repr() -> None:
    code = "class D:\n    def __repr__(self):\n        return '\\ud800!'\ndef f():\n    d = D()\n    return d\n"
    trace = cwm.record_source(code, "f()")
    assert trace.result == "\ud800!"
    assert cwm.Trace.from_bytes(trace.to_bytes()) == trace
    assert cwm.Trace.parse(trace.to_text()).frames[-1].arg == "\ud800!"


def test_parse_gives_the_longest_prefix(trace: cwm.Trace) -> None:
    text = trace.to_text()
    whole = cwm.Trace.parse(text)
    assert whole.complete and whole.error is None and whole.trace.context == trace.context
    assert [f.locals for f in whole.frames] == [f.locals for f in trace.frames]
    broken = cwm.Trace.parse(text.replace('{"n": "0"', '{"n": 0'))
    assert len(broken.frames) == 6 and not broken.complete
    message = "malformed line frame: the locals are not a JSON object of strings: expected a JSON string"
    assert (broken.error, broken.error_kind) == (message, cwm.ParseErrorKind.INVALID_LOCALS)
    assert text[broken.error_offset :].startswith('<|line_sep|>{"n": "0"')


def oracle_parse(text: str) -> tuple[list, bool, bool]:
    """A second strict parser, plain and slow: frames, whether complete, whether an error."""
    frames = []
    while text:
        if text.startswith("<|end_of_text|>"):
            whole = text == "<|end_of_text|>"
            return frames, whole, not whole
        body, closed, text = text.partition("<|frame_sep|>")
        events = [e for e in ("call", "line", "return", "exception") if body.startswith(f"<|{e}_sep|>")]
        if not closed or not events or "<|action_sep|>" not in body:
            return frames, False, True
        event = events[0]
        state, _, action = body[len(f"<|{event}_sep|>") :].partition("<|action_sep|>")
        line, has_value, value = action.partition("<|arg_sep|>")
        try:
            if event in ("call", "line"):
                pairs = json.loads(state, object_pairs_hook=lambda pairs: pairs)
                good = state[:1] == "{" and not has_value and len(dict(pairs)) == len(pairs)
                good = good and all(isinstance(item, str) for _, item in pairs)
                frames.append((event, dict(pairs), line, None))
            else:
                shown = json.loads(value)
                good = not state and isinstance(shown, str)
                frames.append((event, None, line, shown))
        except (ValueError, TypeError):
            return frames, False, True
        if not good:
            return frames[:-1], False, True
    return frames, False, False


events = ["<|call_sep|>", "<|line_sep|>", "<|return_sep|>", "<|exception_sep|>"]
marks = ["<|action_sep|>", "<|arg_sep|>", "<|frame_sep|>", "<|end_of_text|>"]
objects = ["{}", '{"a": "1"}', '{"a": ".."}', '{"a": 1}', '{"a": "1", "a": "2"}', '{"a": ""} ', ' {"a": ""}']
strings = ['""', '"\\ud800"', '"\t"', '"\\x"', '{"é": "\\u00e9"}', "[]", "1", " ", "x = 1\n"]
pieces = st.sampled_from([*events, *marks, *objects, *strings])
frame_texts = st.sampled_from(
    [
        '<|call_sep|>{"a": "1"}<|action_sep|>f\n<|frame_sep|>',
        '<|return_sep|><|action_sep|>g\n<|arg_sep|>"1"<|frame_sep|>',
    ]
)


@given(st.lists(pieces | frame_texts | st.text(max_size=3), max_size=12).map("".join))
def test_parse_equals_a_plain_parser(text: str) -> None:
    frames, complete, failed = oracle_parse(text)
    parsed = cwm.Trace.parse(text)
    if not text.startswith("<|begin_of_text|><|trace_context_start|>"):
        assert [(f.event, f.locals, f.line, f.arg) for f in parsed.frames] == frames
        assert (parsed.complete, parsed.error is not None) == (complete, failed)


def test_json_is_that_of_python() -> None:
    values = ["é\"'\\", "\n\r\t\x00\x7f", "😀", "a" * 50]
    for value in values:
        trace = cwm.record_source("def f(v):\n    return v\n", f"f({value!r})")
        frame = oracle.record_source("def f(v):\n    return v\n", f"f({value!r})")[2]
        assert oracle.frame_text(frame) in trace.to_text()


# ---- outcomes and lone surrogates of parsed traces

ENDINGS = {
    "returned": ("def f(n):\n    return n * 2\n", "f(4)"),
    "raised": ("def f(n):\n    return n / 0\n", "f(4)"),
    "raised through a handler": ("def f():\n    try:\n        1 / 0\n    finally:\n        x = 1\n", "f()"),
    "caught": ("def f():\n    try:\n        1 / 0\n    except ZeroDivisionError:\n        pass\n", "f()"),
    "None": ("def f():\n    pass\n", "f()"),
    "recursion": ("def f(n):\n    return n and f(n - 1)\n", "f(3)"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_complete_trace_that_was_parsed_has_its_outcome(name):
    trace = cwm.record_source(*ENDINGS[name])
    text = trace.to_text()
    parsed = cwm.Trace.parse(text).trace
    assert (parsed.result, parsed.exception) == (trace.result, trace.exception) != (None, None)
    begin = text.index("<|call_sep|>")
    after_first_frame = text[text.index("<|line_sep|>") :]  # what a model is asked for
    for part in (text[begin:], after_first_frame):
        parsed = cwm.Trace.parse(part).trace
        assert (parsed.result, parsed.exception) == (trace.result, trace.exception)
    cut = cwm.Trace.parse(text.removesuffix("<|end_of_text|>")).trace
    assert cut.result is None is cut.exception


def test_a_trace_of_several_outermost_calls_does_not_tell_its_result():
    def steps():
        yield 1

    trace = cwm.record(steps)
    assert trace.result.startswith("<generator object")
    assert cwm.Trace.parse(trace.to_text()).trace.result is None
    assert cwm.Trace.parse("<|end_of_text|>").trace.result is None


FRAME = "<|call_sep|>{}<|action_sep|>f()\n<|frame_sep|>"


@pytest.mark.parametrize("surrogate", ["\ud800", "\udfff", "\udc80\ud800"])
def test_parsing_stops_at_a_lone_surrogate(surrogate):
    context = "<|begin_of_text|><|trace_context_start|>é\n<|frame_sep|>"
    for before, open_part in [
        ("", ""),
        ("", "<|call_sep|>{"),
        (FRAME, ""),
        (context + FRAME, "<|line_sep|>{}<|action_sep|>x = '"),
        (context + FRAME + FRAME, '<|return_sep|><|action_sep|>x\n<|arg_sep|>"'),
    ]:
        parsed = cwm.Trace.parse(before + open_part + surrogate + FRAME)
        assert len(parsed.frames) == before.count("<|call_sep|>") and not parsed.complete
        assert parsed.error == "the text contains a lone surrogate" and parsed.error_offset == len(before)
        assert parsed.error_kind == "invalid_encoding"
    assert cwm.Trace.parse("<|begin_of_text|><|trace_context_start|>" + surrogate).error_offset == 0
    # An earlier error takes precedence.
    earlier = cwm.Trace.parse("nothing<|frame_sep|>" + surrogate)
    assert (earlier.error, earlier.error_kind) == ("a frame must start with an event token", "invalid_structure")
    ended = cwm.Trace.parse(FRAME + "<|end_of_text|>" + surrogate)
    assert (ended.error, ended.error_kind) == ("the end token is not the last one", "trailing_input")
    assert not ended.complete and len(ended.frames) == 1
    whole = cwm.Trace.parse(FRAME + '<|return_sep|><|action_sep|>x\n<|arg_sep|>"\\ud800"<|frame_sep|>')
    assert whole.error is None and whole.frames[1].arg == "\ud800"  # escaped, as JSON writes it


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<|begin_of_text|><|trace_context_start|>x", "unclosed_context"),
        (FRAME[:-1], "unclosed_frame"),
        ("<|line_sep|>{}<|frame_sep|>", "invalid_structure"),
        ('<|line_sep|>{}<|action_sep|>x\n<|arg_sep|>"1"<|frame_sep|>', "invalid_structure"),
        ("<|return_sep|><|action_sep|>x\n<|frame_sep|>", "invalid_structure"),
        ('<|return_sep|>{}<|action_sep|>x\n<|arg_sep|>"1"<|frame_sep|>', "invalid_structure"),
        ('<|line_sep|>{"a": 1}<|action_sep|>x\n<|frame_sep|>', "invalid_locals"),
        ('<|line_sep|>{"a": "1", "a": "1"}<|action_sep|>x\n<|frame_sep|>', "invalid_locals"),
        ("<|return_sep|><|action_sep|>x\n<|arg_sep|>1<|frame_sep|>", "invalid_value"),
        ("\ud800", "invalid_encoding"),
        ("<|end_of_text|>x", "trailing_input"),
    ],
)
def test_parse_errors_have_a_kind(text, kind):
    parsed = cwm.Trace.parse(FRAME + text if not text.startswith("<|begin_of") else text)
    assert parsed.error_kind is cwm.ParseErrorKind(kind)
    assert repr(parsed).endswith(f"error at {parsed.error_offset}: {parsed.error}>")


def test_well_formed_text_has_no_error_kind():
    assert cwm.Trace.parse(FRAME).error_kind is None


def test_frames_are_iterated_and_shown():
    frames = cwm.Trace.parse(FRAME + '<|return_sep|><|action_sep|> y\n<|arg_sep|>"1"<|frame_sep|>').frames
    assert [frame.event for frame in frames] == ["call", "return"] and list(frames) == frames[:]
    assert repr(frames) == '<Frames: 2, from call "f()" to return "y">'
    assert repr(cwm.Trace.parse(FRAME).frames) == '<Frames: 1, call "f()">'
    assert repr(cwm.Trace.parse("").frames) == "<Frames: none>"
