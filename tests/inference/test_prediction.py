"""Prediction: prompts, parsing, and supplied lines, against real traces; evaluation scores on made-up predictions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.evaluation import TraceScores, mean_scores, next_line_baseline, score_trace

torch = pytest.importorskip("torch")

CODE = """def f(n):
    t = []
    for i in range(n):
        try:
            t.append(6 // i)
        except ZeroDivisionError:
            t = [i]
    return t
"""


@pytest.fixture(scope="module")
def tokenizer() -> cwm.Tokenizer:
    return cwm.Tokenizer.train([cwm.record_source(CODE, "f(3)").to_text()], 300)


@pytest.fixture(scope="module")
def trace() -> cwm.Trace:
    return cwm.record_source(CODE, "f(3)")


class Scripted:
    """Stands in for an engine whose model knows the trace: it writes the true next token wherever it is asked."""

    def __init__(self, tokenizer: cwm.Tokenizer, truth: np.ndarray, wrong: dict[int, int] | None = None) -> None:
        self.tokenizer, self.truth, self.wrong = tokenizer, truth.tolist(), wrong or {}
        self.model = SimpleNamespace(config=SimpleNamespace(vocab_size=tokenizer.vocab_size + 3))

    def generate(self, prompts, max_new_tokens, stop_ids, *, on_token=None, constraints=None):
        self.constraints = constraints
        return [self._one(i, list(prompt), max_new_tokens, set(stop_ids), on_token) for i, prompt in enumerate(prompts)]

    def _one(self, i, prompt, limit, stops, on_token):
        assert prompt == self.truth[: len(prompt)]
        constraint = self.constraints[i] if self.constraints else Unconstrained(self.model.config.vocab_size)
        ids, supplied = [], []
        while len(ids) < limit and not (ids and ids[-1] in stops):
            at = len(prompt) + len(ids)
            ids.append(self.wrong.get(at, self.truth[at]))
            assert constraint.allowed()[ids[-1]]
            constraint.advance(ids[-1])
            supplied.append(False)
            if on_token and ids[-1] not in stops:
                more = on_token(i, ids) or []
                for token in more:
                    constraint.advance(token)
                ids += more
                supplied += [True] * len(more)
        self.supplied = np.array(supplied)
        logprobs = np.where(self.supplied, np.nan, -1.0).astype(np.float32)
        return cwm.inference.Generation(np.array(ids, np.int32), logprobs, self.supplied, "stop")


class Unconstrained:
    """A constraint that allows everything."""

    def __init__(self, vocab_size: int) -> None:
        self.mask = np.ones(vocab_size, bool)

    def allowed(self) -> np.ndarray:
        return self.mask

    def advance(self, token: int) -> None:
        """Anything goes."""


def contents(frames) -> list[tuple]:
    return [(f.event, f.locals, f.line, f.arg) for f in frames]


def test_free_prediction_continues_after_the_first_frame(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))
    for prediction in (
        cwm.inference.predict_traces(engine, [trace])[0],
        cwm.inference.predict_traces(engine, [trace], constrained=True)[0],
        cwm.inference.predict_trace(engine, CODE, "f(3)"),
        cwm.inference.predict_trace(engine, CODE, "f(3)", constrained=False),
        cwm.inference.predict_trace(engine, CODE, "f(3)", source_lines=True),
    ):
        assert prediction.parsed.complete
        assert contents(prediction.parsed.frames) == contents(trace.frames)[1:]
        assert score_trace(trace, prediction.parsed) == TraceScores(*[1.0] * 7)


def test_supplied_lines_leave_states_and_values_to_the_model(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))
    prediction = cwm.inference.predict_states(engine, [trace])[0]
    assert contents(prediction.parsed.frames) == contents(trace.frames)[1:] and prediction.parsed.complete
    spans = tokenizer.trace_tokens(trace).spans
    parts = np.where(spans[1:, 0, :1] >= 0, spans[1:, 0], spans[1:, 2])
    # The model writes each state or value and the token that closes it.
    assert (~engine.supplied).sum() == (parts[:, 1] - parts[:, 0] + 1).sum()


def test_a_model_that_breaks_the_form_is_stopped(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    truth = tokenizer.encode_trace(trace)
    spans = tokenizer.trace_tokens(trace).spans
    at = int(spans[5, 0, 0])
    engine = Scripted(tokenizer, truth, {at: tokenizer.special_tokens["<|call_sep|>"]})
    parsed = cwm.inference.predict_states(engine, [trace], constrained=False)[0].parsed
    assert len(parsed.frames) == 4 and not parsed.complete and parsed.error == "missing <|action_sep|> after the locals"


def test_a_guide_knows_the_lines(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))
    asked = []

    def guide(frames):
        asked.append(contents(frames))
        return None if len(frames) == len(trace) else (trace.frames[len(frames)].event, trace.frames[len(frames)].line)

    prompt = cwm.inference.trace_prompt(tokenizer, CODE, "f(3)")
    prediction = cwm.inference.predict_guided(engine, [prompt], [guide])[0]
    assert contents(prediction.parsed.frames) == contents(trace.frames)[1:] and prediction.parsed.complete
    assert asked == [contents(trace.frames)[:n] for n in range(1, len(trace) + 1)]
    with pytest.raises(ValueError, match="'jump'"):
        cwm.inference.predict_guided(engine, [prompt], [lambda frames: ("jump", "")])


def test_probabilities_of_parts_and_output(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))  # every token has the log probability -1
    output = cwm.inference.predict_output(engine, CODE, "f(3)")
    assert output.value == trace.result
    spans = tokenizer.trace_tokens(trace).spans
    lengths = (spans[1:, :, 1] - spans[1:, :, 0]).astype(float)
    lengths[spans[1:, :, 0] < 0] = np.nan
    expected = -np.concatenate([np.ones((len(trace) - 1, 1)), lengths + 1], axis=1)
    # A RETURN or EXCEPTION frame has no state; its <|action_sep|> counts nowhere.
    np.testing.assert_array_equal(output.prediction.frame_logprobs(tokenizer), expected)
    assert output.probability == pytest.approx(np.exp(expected[-1, 3]))

    along = cwm.inference.predict_states(engine, [trace])[0].frame_logprobs(tokenizer)
    expected[:, [0, 2]] = np.nan
    np.testing.assert_array_equal(along, expected)


def test_one_step(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    ids = tokenizer.encode_trace(trace)
    engine = Scripted(tokenizer, ids)
    spans = tokenizer.trace_tokens(trace).spans
    ends = spans[:, :, 1].max(1) + 1
    for i in (0, 4, len(trace) - 2):
        parsed = cwm.inference.predict_step(engine, ids[: ends[i]]).parsed
        assert contents(parsed.frames) == contents(trace.frames[i + 1 : i + 2])
    assert cwm.inference.predict_step(engine, ids[: ends[-1]]).parsed.complete
    cut = cwm.Recorder(max_frames=3).record_source(CODE, "f(3)")
    assert contents(cwm.inference.predict_step(engine, cut).parsed.frames) == contents(trace.frames[3:4])


def test_an_untrained_model_keeps_the_form(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    torch.manual_seed(0)
    config = cwm.model.preset("tiny", vocab_size=tokenizer.vocab_size + 5)
    engine = cwm.inference.Engine(cwm.model.Transformer(config), tokenizer)
    lines = {frame.line for frame in trace.frames}
    for source_lines in (False, True):
        prediction = cwm.inference.predict_trace(engine, CODE, "f(3)", max_new_tokens=200, source_lines=source_lines)
        assert prediction.parsed.error_kind in (None, cwm.ParseErrorKind.UNCLOSED_FRAME)
    prediction = cwm.inference.predict_states(engine, [trace], max_new_tokens=200)[0]
    assert prediction.parsed.error_kind in (None, cwm.ParseErrorKind.UNCLOSED_FRAME)
    assert lines >= {frame.line for frame in prediction.parsed.frames}


def test_an_untrained_model_is_scored(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    torch.manual_seed(0)
    config = cwm.model.preset("tiny", vocab_size=tokenizer.vocab_size)
    engine = cwm.inference.Engine(cwm.model.Transformer(config), tokenizer)
    for predict in (cwm.inference.predict_traces, cwm.inference.predict_states):
        prediction = predict(engine, [trace, trace], max_new_tokens=40)[0]
        scores = score_trace(trace, prediction.parsed)
        assert scores.output == 0.0 and scores.valid_format == 0.0


def test_scores_of_an_altered_trace(trace: cwm.Trace) -> None:
    text = "".join(trace.to_text().partition("<|frame_sep|>")[2:])
    given, _, rest = text.partition("<|frame_sep|>")
    assert given.startswith("<|call_sep|>{}")
    real = len(trace) - 1
    states = sum(frame.locals is not None for frame in trace.frames) - 1

    wrong_line = cwm.Trace.parse(rest.replace("<|action_sep|>    t = []\n", "<|action_sep|>    t = [ ]\n", 1))
    scores = score_trace(trace, wrong_line)
    assert scores.action == pytest.approx(1 - 1 / real) and scores.state == scores.key == scores.output == 1.0

    wrong_value = cwm.Trace.parse(rest.replace('"i": "0"', '"i": "7"', 1))
    scores = score_trace(trace, wrong_value)
    assert scores.state == pytest.approx(1 - 1 / states) and scores.key == 1.0 and scores.action == 1.0
    assert scores.key_value == pytest.approx(1 - (1 - 2 / 4) / states)

    broken = cwm.Trace.parse(rest.replace('{"n": "3"}', '{"n": 3}', 1))
    scores = score_trace(trace, broken)
    assert (scores.valid_format, scores.valid_json, scores.output) == (0.0, 0.5, 0.0)
    assert scores.action == pytest.approx(1 / real) and scores.state == pytest.approx(1 / states)

    spelled = cwm.Trace.parse(
        rest.replace('"[0, 6, 3]"<|frame_sep|><|end_of_text|>', '"[0,6, 3]"<|frame_sep|><|end_of_text|>')
    )
    assert score_trace(trace, spelled).output == 1.0


def test_baseline_repeats_the_state_and_takes_the_next_line() -> None:
    trace = cwm.record_source("def f(n):\n    a = 1\n    a\n    a\n    return a\n", "f(2)")
    # Lines are right after both def lines and the first three lines of f; states are right where nothing changed.
    scores = next_line_baseline(trace)
    assert scores.action == pytest.approx(5 / 8)
    assert scores.state == pytest.approx(4 / 6)
    assert scores.output == 0.0


def test_next_line_baseline_of_changes_only() -> None:
    trace = cwm.record_source("def f(a, b):\n    c = 1\n    a = b\n    pass\n    return a\n", "f(0, 2)")
    coarse = trace.coarsen(changes_only=True)
    locals_ = [frame.locals for frame in coarse.frames if frame.event == "line"]
    assert locals_[1:] == [{"..": ".."}, {"..": "..", "c": "1"}, {"..": "..", "a": "2"}, {"..": ".."}]
    # Right are the LINE frame of main, which has no variables, and the last one.
    assert next_line_baseline(coarse).state == pytest.approx(2 / 6)


def test_means_ignore_missing_scores() -> None:
    some = TraceScores(1.0, 1.0, 0.5, 0.5, None, 1.0, 1.0)
    none = TraceScores(0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0)
    assert mean_scores([some, none]) == TraceScores(0.5, 0.5, 0.25, 0.25, None, 0.5, 0.5)


# ---- what a cut prediction returns

NESTED = "def g(n):\n    return n + 1\ndef f(n):\n    a = g(n)\n    return a * 2\n"


def prediction_of(tokenizer: cwm.Tokenizer, code: str, frames: int | None) -> tuple[Any, cwm.Trace]:
    """Return the result of `predict_output` for a model that writes this many frames of the real trace (None: all)."""
    real = cwm.record_source(code, "f(3)")
    ids = tokenizer.encode_trace(real)
    if frames is not None:
        spans = tokenizer.trace_tokens(real).spans
        ids = ids[: spans[frames, :, 1].max() + 1]
    budget = len(ids) - len(cwm.inference.trace_prompt(tokenizer, code, "f(3)"))
    return cwm.inference.predict_output(Scripted(tokenizer, ids), code, "f(3)", max_new_tokens=budget), real


def test_the_output_of_a_whole_prediction(tokenizer: cwm.Tokenizer) -> None:
    output, real = prediction_of(tokenizer, NESTED, None)
    assert output.value == real.result == "8" and output.probability > 0


@pytest.mark.parametrize("back", [2, 3, 4])
def test_a_prediction_that_is_cut_has_no_output(tokenizer: cwm.Tokenizer, back: int) -> None:
    """The last whole frame may be the RETURN of an inner call."""
    events = [frame.event for frame in cwm.record_source(NESTED, "f(3)").frames]
    output, real = prediction_of(tokenizer, NESTED, len(events) - back)
    assert (output.value, output.probability) == (None, 0.0)
    if back == 2:
        assert output.prediction.parsed.frames[-1].event == "return"
    assert score_trace(real, output.prediction.parsed).output == 0.0


def test_a_prediction_that_only_lacks_its_end_token_has_an_output(tokenizer: cwm.Tokenizer) -> None:
    output, real = prediction_of(tokenizer, NESTED, len(cwm.record_source(NESTED, "f(3)")) - 1)
    assert output.value == "8" and not output.prediction.parsed.complete
    assert score_trace(real, output.prediction.parsed).output == 1.0


def test_a_predicted_exception_has_no_output(tokenizer: cwm.Tokenizer) -> None:
    output, _ = prediction_of(tokenizer, "def f(n):\n    return n[0]\n", None)
    assert output.prediction.parsed.complete and output.value is None


def test_a_predicted_none_is_an_output(tokenizer: cwm.Tokenizer) -> None:
    output, _ = prediction_of(
        tokenizer, "def f(n):\n    try:\n        n[0]\n    except TypeError:\n        pass\n", None
    )
    assert output.value == "None"
