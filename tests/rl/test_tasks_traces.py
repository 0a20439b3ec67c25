"""Rewards of predicted traces against a plain formula, on random changes of real traces."""

from itertools import count, islice

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.corpus.generator import generate
from cwm_core.evaluation import Problem
from cwm_core.machines import bubblewrap_refusal, literals_equal
from cwm_core.rl.tasks import Execution, Reward, Shares, TraceTask, record_executions, start_episode
from cwm_core.tokenizer.special_tokens import END_OF_TEXT, FRAME_SEP, PAD, TRACE_TOKENS
from cwm_core.trace import last_return
from hypothesis import given, settings
from hypothesis import strategies as st

CODE = """def g(x):
    if x > 2:
        raise ValueError(x)
    return {'x': x}
def f(n):
    t = []
    for i in range(n):
        try:
            t.append(g(i))
        except ValueError:
            t = [i]
    return t
"""


def execution(code, call):
    trace = cwm.record_source(code, call)
    return Execution(Problem(code[:20], code, call, trace.result), trace)


EXECUTIONS = [execution(CODE, f"f({n})") for n in (0, 2, 5)]
EXECUTIONS += [execution(p.code, p.call) for p in islice(map(generate, count()), 5)]
TOKENIZER = cwm.Tokenizer.train([e.trace.to_text() for e in EXECUTIONS], 400, special_tokens=[*TRACE_TOKENS, PAD])
STEPS = Shares(0.4, 0.3, 0.2, 0.1)


def truth(item):
    """Tokens after the prompt."""
    ids, spans, _ = TOKENIZER.trace_tokens(item.trace)
    return ids[spans[0].max() + 1 :].tolist()


def formula(item, tokens, shares):
    """The definition: parts of frames by position, up to the first wrong event or line; each worth +-share / count."""
    real, parsed = list(item.trace.frames)[1:], TOKENIZER.parse_trace(tokens)
    frames = list(parsed.frames)
    right = {"line": [], "variables": [], "value": []}
    diverged = False
    for i, frame in enumerate(real):
        other = frames[i] if i < len(frames) and not diverged else None
        same = other is not None and other.event == frame.event
        right["line"].append(same and other.line == frame.line)
        if frame.locals is not None:
            right["variables"].append(same and other.locals == frame.locals)
        if frame.arg is not None:
            right["value"].append(same and literals_equal(frame.arg, other.arg))
        diverged = diverged or not right["line"][-1]
    returned = last_return(frames, complete=parsed.complete, depth=1)
    solved = returned is not None and literals_equal(item.trace.result, frames[returned].arg)
    value = shares.output * (1 if solved else -1)
    value += sum(getattr(shares, part) * (2 * np.mean(each) - 1) for part, each in right.items())
    return value, solved


@st.composite
def predictions(draw):
    """A real trace with some of its tokens replaced, removed, inserted, or encoded in other tokens."""
    item = draw(st.sampled_from(EXECUTIONS))
    tokens = truth(item)
    for _ in range(draw(st.integers(0, 3))):
        at, token = draw(st.integers(0, len(tokens))), draw(st.integers(0, TOKENIZER.vocab_size + 2))
        kind = draw(st.sampled_from(["replace", "remove", "insert", "cut", "spell", "from another"]))
        if kind == "replace":
            tokens[at : at + 1] = [token]
        elif kind == "remove":
            del tokens[at : at + draw(st.integers(1, 20))]
        elif kind == "insert":
            tokens.insert(at, token)
        elif kind == "cut":
            tokens = tokens[:at]
        elif kind == "spell" and at < len(tokens) and tokens[at] not in TOKENIZER.special_tokens.values():
            tokens[at : at + 1] = [i for b in TOKENIZER.token_to_bytes(tokens[at]) for i in BYTES[b]]
        elif kind == "from another":
            tokens = tokens[:at] + truth(draw(st.sampled_from(EXECUTIONS)))[at:]
    return item, tokens


BYTES = [[i for i in range(256) if TOKENIZER.token_to_bytes(i) == bytes([b])] for b in range(256)]


@given(predictions(), st.sampled_from([STEPS, Shares(), Shares(1, 0, 0, 0), Shares(0, 0, 1, 0)]))
def test_reward_is_the_formula(prediction, shares):
    item, tokens = prediction
    reward = TraceTask(TOKENIZER, shares=shares).score(item, tokens)
    value, solved = formula(item, tokens, shares)
    assert reward.value == pytest.approx(value, abs=1e-9) and reward.solved == solved
    assert -1 - 1e-9 <= reward.value <= 1 + 1e-9
    assert all(0 <= begin < end <= len(tokens) for begin, end, _ in reward.token_values)
    if shares == STEPS and reward.value == pytest.approx(1):
        assert reward.reasons == ("right output",)


@given(st.sampled_from(EXECUTIONS))
@settings(max_examples=10)
def test_the_recording_itself_gets_1(item):
    task = TraceTask(TOKENIZER, shares=STEPS)
    reward = task.score(item, truth(item))
    assert reward.value == pytest.approx(1) and reward.solved and reward.reasons == ("right output",)
    # Every token but the last is in exactly one step.
    begins, ends, _ = zip(*sorted(reward.token_values), strict=True)
    assert begins == (0, *ends[:-1]) and ends[-1] == len(truth(item)) - 1


def test_the_wrong_part_is_charged():
    item = EXECUTIONS[2]
    task, tokens = TraceTask(TOKENIZER, shares=STEPS), truth(item)
    _, spans, _ = TOKENIZER.trace_tokens(item.trace)
    start = spans[0].max() + 1
    begin, end = (spans[4, 0] - start).tolist()
    changed = tokens[:begin] + TOKENIZER.encode('{"n": "7"}').tolist() + tokens[end:]
    reward = task.score(item, changed)
    negative = [step for step in reward.token_values if step[2] < 0]
    assert [begin for begin, _, _ in negative] == [begin - 1] and "frame 4: wrong variables" in reward.reasons
    assert reward.solved  # a wrong state does not end the comparison
    begin = spans[3, 1, 0] - start
    reward = task.score(item, [*tokens[:begin], *TOKENIZER.encode("pass\n"), *tokens[begin + 1 :]])
    # Two right frames, the variables of the third, and its wrong line.
    assert reward.reasons[-1] == "frame 3: wrong line" and len(reward.token_values) == 4


def test_prompt_and_answer_are_the_recording():
    item = EXECUTIONS[0]
    task = TraceTask(TOKENIZER)
    assert [*task.prompt(item), *truth(item)] == TOKENIZER.encode_trace(item.trace).tolist()
    assert task.stop_tokens == {TOKENIZER.special_tokens[END_OF_TEXT]}
    episode = start_episode(task, item)
    assert episode.prompt == task.prompt(item)
    assert isinstance(episode.step([]), Reward) and episode.step(truth(item)).solved
    episode.close()


def test_an_endless_prediction_is_not_solved():
    item = EXECUTIONS[1]
    tokens = truth(item)
    last = tokens[-1 - tokens[-2::-1].index(TOKENIZER.special_tokens[FRAME_SEP]) :]
    for forged in (tokens[:-1] + tokens, [*tokens[:-1], *last, *tokens[:-1]], tokens * 2, [TOKENIZER.vocab_size] * 3):
        reward = TraceTask(TOKENIZER).score(item, forged)
        assert (reward.value, reward.solved) == formula(item, forged, Shares(1, 0, 0, 0))


def test_shares_must_add_up():
    with pytest.raises(ValueError, match="add up to 1"):
        Shares(1.0, 1.0)
    with pytest.raises(ValueError, match="lacks"):
        TraceTask(cwm.Tokenizer.train(["a"], 300, special_tokens=["<|pad|>"]))


@pytest.mark.skipif(bubblewrap_refusal() is not None, reason=f"no bubblewrap: {bubblewrap_refusal()}")
def test_truth_is_recorded_in_a_sandbox():
    problems = [
        Problem("right", CODE, "2", "[{'x': 0}, {'x': 1}]"),
        Problem("unknown", CODE, "0"),
        Problem("disagrees", CODE, "2", "[]"),
        Problem("raises", "def f(x):\n    return 1 / x\n", "0"),
        Problem("long", "def f(x):\n    while True:\n        x += 1\n", "0"),
        Problem("random", "import random\ndef f(x):\n    return random.random()\n", "0"),
        Problem("set", "def f(x):\n    return [y for y in {'a', 'b', 'c', 'd', 'e'}]\n", "0"),
        Problem("exits", "import os\ndef f(x):\n    os._exit(0)\n", "0"),
        Problem(
            "patches", "import sys\ndef f(x):\n    sys.settrace(None)\n    sys.monitoring = None\n    return x\n", "0"
        ),
    ]
    executions, left_out = record_executions(problems, max_frames=500)
    assert [e.problem.id for e in executions] == ["right", "unknown"]
    assert executions[1].problem.output == "[]"
    assert left_out == {
        "disagrees": "the recording returns another value than the stated output",
        "raises": "raised",
        "long": "limit: max_frames",
        "random": "not deterministic",
        "set": "not deterministic",
        "exits": "ended without a result",
        "patches": "limit: settrace",
    }
