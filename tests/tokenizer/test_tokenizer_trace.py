"""Traces to tokens and back: the text form, encoded part by part by tiktoken, is the oracle."""

import re

import numpy as np
import pytest
from cwm_core import Recorder, Tokenizer, Trace, record_source
from cwm_core.tokenizer import CWM_SPECIAL_TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st
from llama3 import SPECIAL

PROGRAM = """
def f(n):
    s = 'aé\\n'
    while n:
        n -= 1
    try:
        raise ValueError({"s": s})
    except ValueError:
        return [s] * 2
"""


@pytest.fixture(scope="module")
def trace():
    return record_source(PROGRAM, "f(3)")


def by_parts(peer, text):
    ids = []
    for part in re.split(r"(<\|\w+\|>)", text):
        ids += [SPECIAL[part]] if part in SPECIAL else peer.encode_ordinary(part)
    return ids


def test_tokens_are_those_of_the_parts(llama, peer, trace):
    assert len(trace.frames) > 15
    ids = llama.encode_trace(trace)
    assert ids.dtype == np.int32
    assert ids.tolist() == by_parts(peer, trace.to_text())
    assert llama.decode(ids) == trace.to_text()


def test_a_trace_cut_by_a_limit_has_no_end_token(llama, peer):
    trace = Recorder(max_frames=5).record_source(PROGRAM, "f(3)")
    assert trace.truncated == "max_frames"
    ids = llama.encode_trace(trace)
    assert SPECIAL["<|end_of_text|>"] not in ids
    assert ids.tolist() == by_parts(peer, trace.to_text())
    parsed = llama.parse_trace(ids)
    assert (parsed.complete, parsed.error, len(parsed.frames)) == (False, None, 5)


def test_spans_are_the_parts(llama, trace):
    ids = llama.encode_trace(trace)
    _, spans, context = llama.trace_tokens(trace)
    assert spans.dtype == np.int32
    assert spans.shape == (len(trace.frames), 3, 2)
    assert llama.decode(ids[:context]) == trace.to_text().split("<|frame_sep|>")[0] + "<|frame_sep|>"
    texts = [
        frame.split("<|frame_sep|>")[0]
        for frame in re.split(r"<\|(?:call|line|return|exception)_sep\|>", trace.to_text())
    ]
    for frame, text, rows in zip(trace.frames, texts[1:], spans.tolist(), strict=True):
        state, action, value = (None if start < 0 else llama.decode(ids[start:end]) for start, end in rows)
        assert action == frame.line
        assert (state is None) == (frame.locals is None)
        assert (value is None) == (frame.arg is None)
        assert text == (state or "") + "<|action_sep|>" + action + ("" if value is None else "<|arg_sep|>" + value)
    assert (spans[:, :, 0] >= -1).all()
    assert ((spans == -1).all(axis=2) == (spans == -1).any(axis=2)).all()


def test_parsing_gives_the_frames_back(llama, trace):
    ids = llama.encode_trace(trace)
    context = llama.trace_tokens(trace).context_length
    for same in (ids, ids.tolist(), ids[context:], ids.astype(np.int64)):
        parsed = llama.parse_trace(same)
        assert (parsed.complete, parsed.error) == (True, None)
        shown = [(frame.event, frame.locals, frame.line, frame.arg) for frame in parsed.frames]
        assert shown == [(frame.event, frame.locals, frame.line, frame.arg) for frame in trace.frames]
    assert np.array_equal(llama.encode_trace(llama.parse_trace(ids).trace), ids)


def test_special_text_in_a_program_is_ordinary(llama):
    trace = record_source("def f(s):\n    t = s + '<|end_of_text|>'\n    return t\n", "f('<|frame_sep|>')")
    ids = llama.encode_trace(trace)
    assert np.count_nonzero(ids == SPECIAL["<|frame_sep|>"]) == len(trace.frames) + 1
    assert np.count_nonzero(ids == SPECIAL["<|end_of_text|>"]) == 1
    parsed = llama.parse_trace(ids)
    assert parsed.complete
    assert parsed.trace.context == trace.context
    assert [frame.locals for frame in parsed.frames] == [frame.locals for frame in trace.frames]


IDS = st.one_of(st.integers(128_099, 128_108), st.integers(0, 128_300), st.integers(-(2**63), 2**63 - 1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_leaves_the_frames_before_it(llama, trace, data):
    ids = llama.encode_trace(trace).astype(np.int64)
    at = data.draw(st.integers(0, len(ids) - 1))
    damage = data.draw(st.lists(IDS, max_size=3))
    parsed = llama.parse_trace(np.concatenate([ids[:at], np.array(damage, np.int64), ids[at + 1 :]]))
    whole = max(0, np.count_nonzero(ids[:at] == SPECIAL["<|frame_sep|>"]) - 1)
    assert len(parsed.frames) >= whole
    assert all(parsed.frames[i].locals == trace.frames[i].locals for i in range(whole))
    if parsed.error is not None:
        assert 0 <= parsed.error_offset <= len(ids) + 2


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(IDS))
def test_no_ids_are_an_error(llama, ids):
    parsed = llama.parse_trace(ids)
    assert parsed.error is None or 0 <= parsed.error_offset <= len(ids)


def test_tokens_outside_the_format_stop_the_parse(llama, trace):
    ids = llama.encode_trace(trace)
    end = llama.trace_tokens(trace).spans[3, 1, 1]
    for foreign in (-1, SPECIAL["<|eot_id|>"], 128_256, 2**31 - 1):
        damaged = ids.copy()
        damaged[end] = foreign  # the separator after the fourth frame
        parsed = llama.parse_trace(damaged)
        assert len(parsed.frames) == 3
        assert parsed.error is not None
        assert ids[parsed.error_offset - 1] == SPECIAL["<|frame_sep|>"]


def test_a_vocabulary_without_the_tokens_says_so(trace):
    tokenizer = Tokenizer.train([], 256, special_tokens=["<|begin_of_text|>"])
    for call in (tokenizer.encode_trace, tokenizer.trace_tokens):
        with pytest.raises(ValueError, match=r"end_of_text.* is not a special token"):
            call(trace)
    assert tokenizer.parse_trace([1, 2, 3]).error is not None


def test_a_small_vocabulary_needs_only_the_tokens_of_traces(trace):
    names = [name for name in CWM_SPECIAL_TOKENS if name.endswith(("sep|>", "_of_text|>", "_start|>"))]
    tokenizer = Tokenizer.train([trace.context], 300, special_tokens=names)
    parsed = tokenizer.parse_trace(tokenizer.encode_trace(trace))
    assert parsed.complete
    assert isinstance(parsed.trace, Trace)
    assert len(parsed.frames) == len(trace.frames)
