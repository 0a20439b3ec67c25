"""Prediction: prompts, parsing, and supplied lines, against real traces; evaluation scores on made-up predictions."""

from __future__ import annotations

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

    def generate(self, prompts, max_new_tokens, stop_ids, *, on_token=None):
        return [self._one(i, list(prompt), max_new_tokens, set(stop_ids), on_token) for i, prompt in enumerate(prompts)]

    def _one(self, i, prompt, limit, stops, on_token):
        assert prompt == self.truth[: len(prompt)]
        ids, supplied = [], []
        while len(ids) < limit and not (ids and ids[-1] in stops):
            at = len(prompt) + len(ids)
            ids.append(self.wrong.get(at, self.truth[at]))
            supplied.append(False)
            if on_token and ids[-1] not in stops:
                more = on_token(i, ids) or []
                ids += more
                supplied += [True] * len(more)
        self.supplied = np.array(supplied)
        return cwm.inference.Generation(np.array(ids, np.int32), np.zeros(len(ids), np.float32), self.supplied, "stop")


def contents(frames) -> list[tuple]:
    return [(f.event, f.locals, f.line, f.arg) for f in frames]


def test_free_prediction_continues_after_the_first_frame(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))
    for prediction in (
        cwm.inference.predict_traces(engine, [trace])[0],
        cwm.inference.predict_trace(engine, CODE, "f(3)"),
    ):
        assert prediction.parsed.complete
        assert contents(prediction.parsed.frames) == contents(trace.frames)[1:]
        assert score_trace(trace, prediction.parsed) == TraceScores(*[1.0] * 7)


def test_supplied_lines_leave_states_and_values_to_the_model(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    engine = Scripted(tokenizer, tokenizer.encode_trace(trace))
    prediction = cwm.inference.predict_states(engine, [trace])[0]
    assert contents(prediction.parsed.frames) == contents(trace.frames)[1:] and prediction.parsed.complete
    spans, _ = tokenizer.trace_spans(trace)
    parts = np.where(spans[1:, 0, :1] >= 0, spans[1:, 0], spans[1:, 2])
    # The model writes each state or value and the token that closes it.
    assert (~engine.supplied).sum() == (parts[:, 1] - parts[:, 0] + 1).sum()


def test_a_model_that_breaks_the_form_is_stopped(tokenizer: cwm.Tokenizer, trace: cwm.Trace) -> None:
    truth = tokenizer.encode_trace(trace)
    spans, _ = tokenizer.trace_spans(trace)
    at = int(spans[5, 0, 0])
    engine = Scripted(tokenizer, truth, {at: tokenizer.special_tokens["<|call_sep|>"]})
    parsed = cwm.inference.predict_states(engine, [trace])[0].parsed
    assert len(parsed.frames) == 4 and not parsed.complete and parsed.error == "no action"


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


def test_baseline_repeats_the_state_and_goes_on() -> None:
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


def test_means_leave_out_what_has_no_score() -> None:
    some = TraceScores(1.0, 1.0, 0.5, 0.5, None, 1.0, 1.0)
    none = TraceScores(0.0, 0.0, 0.0, 0.0, None, 0.0, 0.0)
    assert mean_scores([some, none]) == TraceScores(0.5, 0.5, 0.25, 0.25, None, 0.5, 0.5)
