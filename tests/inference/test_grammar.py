"""The grammar of traces: what it allows is well formed, and it allows every recorded trace, however its text is cut."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
import re
import warnings

import cwm_core as cwm
import numpy as np
import pytest
from children import in_a_child
from cwm_core.corpus.generator import generate
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from programs import programs

inference = pytest.importorskip("cwm_core.inference")
TraceGrammar = inference.TraceGrammar

CODE = """
def inner(n):
    return [n] * n

def f(n):
    s = 'é"'
    for i in range(n):
        t = inner(i)
        try:
            t[9]
        except IndexError as e:
            del t
    return s
"""
TRACE = cwm.record_source(CODE, "f(3)")
SMALL = cwm.Tokenizer.train([TRACE.to_text()] * 3, 400)
SMALL_GRAMMAR = TraceGrammar(SMALL)
END = "<|end_of_text|>"


@pytest.fixture(scope="module")
def llama_grammar(llama: cwm.Tokenizer) -> TraceGrammar:
    return TraceGrammar(llama)


# ---- what is allowed is well formed


def walk(grammar: TraceGrammar, tokenizer: cwm.Tokenizer, prompt: np.ndarray, rng: random.Random, steps: int):
    """Choose tokens at random: half of the time any allowed token, otherwise one that leads to an end."""
    closing = [SPECIAL for SPECIAL in tokenizer.special_tokens if SPECIAL.endswith("_sep|>")] + [END]
    likely = [tokenizer.special_tokens[name] for name in closing]
    likely += [int(tokenizer.encode(text)[0]) for text in ('"', "}", ":", ",", "{", "n", ".", '"}', '": "', "..", "\\")]
    constraint, ids = grammar.constraint(prompt), []
    while not ids or ids[-1] != tokenizer.special_tokens[END]:
        allowed = constraint.allowed()
        some = rng.randrange(tokenizer.vocab_size)
        assert constraint.allows(some) == allowed[some]
        choices = [id for id in likely if allowed[id]] if rng.random() < 0.5 or len(ids) > steps else []
        ids.append(rng.choice(choices or np.flatnonzero(allowed).tolist()))
        constraint.advance(ids[-1])
        if len(ids) == 4 * steps:
            break
    else:
        assert not constraint.allowed().any()
    return ids


def check_walks(grammar: TraceGrammar, tokenizer: cwm.Tokenizer, trace: cwm.Trace, seeds: range, steps: int) -> None:
    ids = tokenizer.encode_trace(trace)
    _, spans, context = tokenizer.trace_tokens(trace)
    complete = 0
    for seed in seeds:
        rng = random.Random(seed)
        # After the context, after a few frames, or in the middle of one.
        prompt = ids[: rng.choice([context, spans[4, :, 1].max() + 1, rng.randrange(context, len(ids) - 1)])]
        parsed = tokenizer.parse_trace(np.concatenate([prompt, walk(grammar, tokenizer, prompt, rng, steps)]))
        assert parsed.error_kind in (None, cwm.ParseErrorKind.UNCLOSED_FRAME), seed
        complete += parsed.complete
        states = zip(parsed.frames, parsed.trace.states(), strict=True)
        assert all((state is None) == (frame.locals is None) for frame, state in states), seed
    assert complete > len(seeds) / 2


def test_random_generations_are_well_formed() -> None:
    check_walks(SMALL_GRAMMAR, SMALL, TRACE, range(150), 60)


def test_random_generations_are_well_formed_in_a_large_vocabulary(llama, llama_grammar) -> None:
    check_walks(llama_grammar, llama, TRACE, range(40), 60)


def test_lines_of_the_source_only(llama, llama_grammar) -> None:
    lines = {*CODE.splitlines(True), "", "\n", "def main():\n", "    return f(3)\n"}
    for tokenizer, grammar in ((SMALL, SMALL_GRAMMAR), (llama, llama_grammar)):
        held = grammar.for_context(TRACE.context)
        check_walks(held, tokenizer, TRACE, range(30), 60)
        prompt = tokenizer.encode_trace(TRACE)[: tokenizer.trace_tokens(TRACE).context_length]
        seen = set()
        for seed in range(40):
            ids = walk(held, tokenizer, prompt, random.Random(seed), 60)
            seen |= {frame.line for frame in tokenizer.parse_trace(ids).frames}
        assert len(seen) > 5 and seen <= lines


# ---- nothing real is forbidden


def cut_anyhow(tokenizer: cwm.Tokenizer, ids: list[int], rng: random.Random) -> list[int]:
    """Draw other tokens of the same texts: some become the tokens of their halves, or single bytes."""
    special, cut = set(tokenizer.special_tokens.values()), []
    for id in ids:
        text = b"" if id in special else tokenizer.token_to_bytes(id)
        if len(text) < 2 or rng.random() < 0.5:
            cut.append(id)
            continue
        at = rng.randrange(1, len(text))
        for half in (text[:at], text[at:]):
            cut += tokenizer.encode_bytes(half).tolist()
    return cut


def check_allowed(grammar: TraceGrammar, tokenizer: cwm.Tokenizer, trace: cwm.Trace, rng: random.Random) -> None:
    ids = tokenizer.encode_trace(trace).tolist()
    for held, tokens in itertools.product(
        (grammar, grammar.for_context(trace.context)), (ids, cut_anyhow(tokenizer, ids, rng))
    ):
        constraint = held.constraint()
        for at, token in enumerate(tokens):
            assert constraint.allowed()[token], tokenizer.decode(tokens[max(0, at - 40) : at + 1])
            constraint.advance(token)


def levels(trace: cwm.Trace) -> list[cwm.Trace]:
    return [trace, trace.coarsen(changes_only=True), trace.coarsen(calls_only=True, max_depth=2)]


@given(seed=st.integers(0, 10**6))
def test_recorded_corpus_is_allowed(seed: int) -> None:
    program = generate(seed)
    for trace in levels(cwm.record_source(program.code, program.call)):
        check_allowed(SMALL_GRAMMAR, SMALL, trace, random.Random(seed))


def recorded(code: str) -> cwm.Trace:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # a literal that is called, a coroutine that nobody awaits
        return cwm.Recorder(max_frames=150, max_bytes=1 << 22, max_seconds=5).record_source(code, "f(1, 'b', [2])")


@settings(max_examples=40)
@given(code=programs, seed=st.integers(0, 10**6))
def test_recorded_programs_are_allowed(code: str, seed: int) -> None:
    trace = in_a_child(recorded, code)
    assume(trace is not None)
    # The one exception: a value whose own text is `..`, which reads as a reference to nothing.
    assume(
        all(
            (state is None) == (frame.locals is None) for frame, state in zip(trace.frames, trace.states(), strict=True)
        )
    )
    for level in levels(trace):
        check_allowed(SMALL_GRAMMAR, SMALL, level, random.Random(seed))


def test_recorded_traces_are_allowed_in_a_large_vocabulary(llama, llama_grammar) -> None:
    for trace in levels(TRACE):
        check_allowed(llama_grammar, llama, trace, random.Random(0))


def test_a_frame_without_a_line_is_allowed() -> None:
    trace = cwm.record_source("def f():\n    try:\n        1 / 0\n    except* KeyError:\n        pass\n", "f()")
    assert any(frame.line == "" for frame in trace.frames)
    check_allowed(SMALL_GRAMMAR, SMALL, trace, random.Random(0))


def test_a_program_with_comments_like_the_mark() -> None:
    trace = cwm.record_source("def f():  # << START_OF_TRACE\n    return 1  # << START_OF_TRACE\n", "f()")
    check_allowed(SMALL_GRAMMAR, SMALL, trace, random.Random(0))


# ---- LOCALS against json.loads


def endings() -> list[bytes]:
    """Return texts, one of which completes any beginning of LOCALS."""
    within = [b"", b"n", *(b"1" * digits for digits in range(1, 5))]
    within += [bytes([first]) + b"\x80" * tail for first in (0x80, 0x90, 0xA0) for tail in range(3)]
    around = [b"", b"{}", b"}", b'Zq":""}', b':""}', b'""}', b'Zq"}', b'"Zq":""}']
    return [w + a for w in within for a in around]


def is_locals(text: bytes, shown: set[str]) -> bool:
    """Whether these are the LOCALS of a LINE frame whose activation showed these variables."""
    if not text.startswith(b"{"):
        return False
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=list)
    except ValueError:
        return False
    names = [name for name, _ in pairs]
    return (
        len(set(names)) == len(names)
        and all(isinstance(value, str) for _, value in pairs)
        and all(value != ".." or name in shown or (i == 0 and name == "..") for i, (name, value) in enumerate(pairs))
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 10**9))
def test_locals_equal_those_that_json_loads_accepts(seed: int) -> None:
    rng = random.Random(seed)
    prompt = f"<|call_sep|>{json.dumps(dict.fromkeys(['n', 'é', '😀'], '1'))}<|action_sep|><|frame_sep|><|line_sep|>"
    constraint = SMALL_GRAMMAR.constraint(SMALL.encode(prompt, allowed_special="all"))
    text, pieces = b"", re.findall(r'[{}":,.\\]|n|\\\\u002e|\\\\u00e9|é|😀|\\\\ud83d|\\\\ude00', '{}":,.n\\\\u002eé😀')
    likely = sorted({int(id) for piece in pieces for id in SMALL.encode(piece)})
    for _ in range(rng.randrange(30)):
        allowed = constraint.allowed()[: SMALL.vocab_size - 256]
        choices = [id for id in likely if allowed[id]] if rng.random() < 0.8 else np.flatnonzero(allowed).tolist()
        if not choices:
            break
        token = rng.choice(choices)
        constraint.advance(token)
        text += SMALL.token_to_bytes(token)
    allowed = constraint.allowed()
    for token in range(SMALL.vocab_size - 256):
        begun = text + SMALL.token_to_bytes(token)
        can_end = any(is_locals(begun + ending, {"n", "é", "😀"}) for ending in endings())
        assert allowed[token] == can_end, begun
    assert allowed[SMALL.special_tokens["<|action_sep|>"]] == is_locals(text, {"n", "é", "😀"})


# ---- the objects


def test_masks_of_a_model_with_more_ids() -> None:
    wide = TraceGrammar(SMALL, vocab_size=SMALL.vocab_size + 7)
    mask = wide.constraint().allowed()
    assert mask.shape == (SMALL.vocab_size + 7,) and mask.dtype == bool
    assert np.array_equal(mask[: SMALL.vocab_size], SMALL_GRAMMAR.constraint().allowed()) and not mask[-7:].any()
    with pytest.raises(ValueError, match="masks of 5"):
        TraceGrammar(SMALL, vocab_size=5)


def test_prompts_that_no_trace_continues_are_errors() -> None:
    ids = SMALL.encode_trace(TRACE)
    with pytest.raises(ValueError, match="the token at 1:"):
        SMALL_GRAMMAR.constraint([ids[0], ids[0]])
    constraint = SMALL_GRAMMAR.constraint(ids)
    for token in (SMALL.special_tokens[END], -1, 1 << 40):
        with pytest.raises(ValueError, match=f"token {token}"):
            constraint.advance(token)
    with pytest.raises(ValueError, match="no lines"):
        SMALL_GRAMMAR.for_context("")


def test_a_vocabulary_without_the_special_tokens() -> None:
    plain = cwm.Tokenizer.train(["abc"], 256, special_tokens=[])
    with pytest.raises(ValueError, match="begin_of_text"):
        TraceGrammar(plain)
