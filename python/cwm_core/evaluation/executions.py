"""Evaluate predictions of executions: their traces, and whether they end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..machines import Limits, Sandbox, literals_equal
from ..machines.programs import DEFAULT_LIMITS, Outcome, check_sandbox, in_parallel, record_program
from ..tokenizer.special_tokens import END_OF_TEXT, FRAME_SEP
from ..trace import ParsedTrace, Trace, Truncation
from .answers import answer_logprobs, fields_of, fill, load_template
from .problems import Problem
from .report import IntervalKind, Measure, Report, Result, count_left_out, measure
from .results import digest, leaving_out, limit_settings, run_batches, too_long
from .statistics import bootstrap_interval
from .traces import TraceScores, score_trace

if TYPE_CHECKING:
    from ..inference import Engine, Prediction
    from ..tokenizer import Tokenizer

How = Literal["trace", "direct"]
"""Method of an answer: "trace" reads it from a predicted trace, "direct" asks the model a question."""

CWM_32B_ON_CRUXEVAL = {
    "output": 0.880, "valid_format": 0.996, "state": 0.969, "action": 0.965, "valid_json": 1.000, "key": 0.991,
    "key_value": 0.981, "state tokens": 11.7, "action tokens": 11.2,
}  # fmt: skip
"""Scores in Table 9 of the report on the Code World Model, arXiv 2510.02387: shares, and numbers of tokens."""

# Trace scores that are 0 or 1 for each trace.
_SHARES = ("output", "valid_format")


def evaluate_traces(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int = 4096,
    max_frames: int = 2000,
    cruxeval: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    sandbox: Sandbox = "bubblewrap",
    predict_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Predict the execution of each program greedily, and score it against a recording in a sandbox.

    The measures are those of `TraceScores` and the mean numbers of tokens of a predicted state and action, averaged
    over each trace and then over traces. A program that cannot be recorded completely, or whose prompt exceeds the
    model's context, is left out with the reason.

    Args:
        engine: An engine with a tokenizer, or an object with the same `generate` and `tokenizer`.
        problems: Problems of `read_problems`. The report counts how often a stated `output` equals the recording.
        max_new_tokens: Maximum number of tokens in a prediction.
        max_frames: Maximum number of frames in a recording; longer programs are left out.
        cruxeval: Include the published scores of CWM 32B. Use it only with the problems of CruxEval.
        limits: Limits of each program; see `Limits`.
        sandbox: Isolation of the programs. Use "process" only for trusted programs.
        predict_options: Further arguments of `predict_traces`.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: `folder` holds results of other settings.
        SandboxError: The sandbox does not work on this machine.
    """
    from ..inference import predict_traces, trace_prompt

    check_sandbox(sandbox)
    predict_options = dict(predict_options or {})

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        prompts = [trace_prompt(engine.tokenizer, problem.code, problem.call) for problem in batch]
        return leaving_out(batch, too_long(engine, prompts, max_new_tokens), record)

    def record(batch: Sequence[Problem]) -> list[Result]:
        recorded = _record(batch, max_frames, limits, sandbox)
        traces = [outcome.value for outcome in recorded if outcome.value is not None]
        reasons = [outcome.reason if outcome.value is None else None for outcome in recorded]
        return leaving_out(batch, reasons, lambda kept: predict(kept, traces))

    def predict(batch: Sequence[Problem], traces: Sequence[Trace]) -> list[Result]:
        predictions = predict_traces(engine, traces, max_new_tokens=max_new_tokens, **predict_options)
        return [
            Result(
                problem.id,
                {
                    "scores": asdict(score_trace(trace, prediction.parsed)),
                    "frames": len(trace) - 1,
                    "predicted_frames": len(prediction.parsed.frames),
                    "tokens": len(prediction.ids),
                    "error": prediction.parsed.error,
                    **_mean_lengths(engine.tokenizer, prediction.parsed),
                    "agrees": _agrees(problem, trace),
                },
            )
            for problem, trace, prediction in zip(batch, traces, predictions, strict=True)
        ]

    settings = {"max_new_tokens": max_new_tokens, "max_frames": max_frames, **limit_settings(limits), **predict_options}
    results, settings = run_batches("traces", problems, solve, settings, **options)
    seed = settings["seed"]
    published = CWM_32B_ON_CRUXEVAL if cruxeval else {}
    scored = [result.values for result in results if result.left_out is None]
    measures = [
        measure(
            name,
            [result["scores"][name] for result in scored],
            share=name in _SHARES,
            seed=seed,
            published=published.get(name),
        )
        for name in (field.name for field in fields(TraceScores))
    ]
    measures += [
        measure(name, [result[key] for result in scored], share=False, seed=seed, published=published.get(name))
        for name, key in (("state tokens", "state_tokens"), ("action tokens", "action_tokens"))
    ]
    if any(result["agrees"] is not None for result in scored):
        agrees = [result["agrees"] for result in scored]
        measures.append(measure("recording agrees", agrees, share=True, seed=seed))
    return Report("traces", settings, measures, len(problems), count_left_out(results), results)


def evaluate_termination(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    how: How = "trace",
    template: str | os.PathLike[str] | None = None,
    max_frames: int = 2000,
    max_new_tokens: int = 32768,
    limits: Limits = DEFAULT_LIMITS,
    sandbox: Sandbox = "bubblewrap",
    **options: Any,
) -> Report:
    """Predict whether each call ends within `max_frames` frames of its trace.

    The truth is the problem's `ends` or, if that is missing, a recording in a sandbox. The measures are accuracy and
    balanced accuracy: the mean of the shares of correct answers among calls that end and among those that do not.
    Problems with unknown truth are left out.

    Args:
        engine: An engine with a tokenizer.
        problems: Problems of `read_problems`.
        how: "trace" predicts a trace. The answer is yes if the trace ends within `max_frames` frames, no if it has more
            frames or exceeds `max_new_tokens`, and wrong if it breaks the format. "direct" asks a question and compares
            the probabilities of " yes" and " no".
        template: File with the question, which ends before the answer. Its fields are `{code}`, `{input}` and,
            optionally, `{steps}`. None uses the built-in question.
        max_frames: Maximum number of frames.
        max_new_tokens: Maximum number of tokens in a prediction.
        limits: Limits of each program; see `Limits`.
        sandbox: Isolation of the programs. Use "process" only for trusted programs.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: `folder` holds results of other settings, or the template lacks a field.
        SandboxError: The sandbox does not work on this machine.
    """
    from ..inference import completion_prompt, trace_prompt

    check_how(how)
    if any(problem.ends is None for problem in problems):
        check_sandbox(sandbox)
    text = load_template("termination", ("code", "input"), template) if how == "direct" else ""

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        if how == "trace":
            prompts = [trace_prompt(engine.tokenizer, problem.code, problem.call) for problem in batch]
        else:
            prompts = [completion_prompt(engine.tokenizer, question) for question in questions(batch)]
        return leaving_out(batch, too_long(engine, prompts, max_new_tokens), answer)

    def answer(batch: Sequence[Problem]) -> list[Result]:
        truths = in_parallel(lambda problem: _ends(problem, max_frames, limits, sandbox), batch)
        known = [truth.value for truth in truths if truth.value is not None]
        reasons = [truth.reason if truth.value is None else None for truth in truths]
        return leaving_out(
            batch,
            reasons,
            lambda kept: [
                Result(problem.id, {"ends": ends, **said})
                for problem, ends, said in zip(kept, known, predict(kept), strict=True)
            ],
        )

    def questions(batch: Sequence[Problem]) -> list[str]:
        return [fill(text, **fields_of(problem), steps=max_frames) for problem in batch]

    def predict(known: Sequence[Problem]) -> list[dict[str, Any]]:
        if how == "trace":
            return [
                {
                    "predicted": _predicts_end(engine.tokenizer, prediction, max_frames),
                    "frames": len(prediction.parsed.frames) + 1,
                }
                for prediction in predict_calls(engine, known, max_new_tokens)
            ]
        prompts = [completion_prompt(engine.tokenizer, question) for question in questions(known)]
        logprobs = answer_logprobs(engine, prompts, [engine.tokenizer.encode(answer) for answer in (" yes", " no")])
        return [{"predicted": bool(yes > no), "logprobs": [yes, no]} for yes, no in logprobs.tolist()]

    settings = {"how": how, "max_frames": max_frames, "max_new_tokens": max_new_tokens, **limit_settings(limits)}
    settings["template"] = digest(text)
    results, settings = run_batches("termination", problems, solve, settings, **options)
    scored = [result.values for result in results if result.left_out is None]
    right = {truth: [float(r["predicted"] is truth) for r in scored if r["ends"] is truth] for truth in (True, False)}
    names = {True: "ends", False: "does not end", None: "no answer"}
    confusion = {
        names[truth]: {
            name: sum(r["ends"] is truth and r["predicted"] is said for r in scored) for said, name in names.items()
        }
        for truth in (True, False)
    }
    measures = [
        measure("accuracy", right[True] + right[False], share=True, seed=settings["seed"]),
        _balanced(right[True], right[False], settings["seed"]),
    ]
    return Report("termination", settings, measures, len(problems), count_left_out(results), results, confusion)


def predict_calls(
    engine: Engine, problems: Sequence[Problem], max_new_tokens: int, **sampling: Any
) -> list[Prediction]:
    """Predict each call from its `trace_prompt`; `sampling` are arguments of `Engine.generate`."""
    from ..inference import Prediction, trace_prompt

    tokenizer = engine.tokenizer
    prompts = [trace_prompt(tokenizer, problem.code, problem.call) for problem in problems]
    generations = engine.generate(prompts, max_new_tokens, [tokenizer.special_tokens[END_OF_TEXT]], **sampling)
    return [Prediction(tokenizer.parse_trace(g.ids), g.ids, g.logprobs) for g in generations]


def check_how(how: str) -> None:
    """Raise ValueError for an unknown method."""
    if how not in ("trace", "direct"):
        raise ValueError(f'how must be "trace" or "direct", not {how!r}')


def _record(batch: Sequence[Problem], max_frames: int, limits: Limits, sandbox: Sandbox) -> list[Outcome[Trace]]:
    """Record whole executions."""

    def record(problem: Problem) -> Outcome[Trace]:
        outcome = record_program(problem.code, problem.call, max_frames=max_frames, limits=limits, sandbox=sandbox)
        if outcome.value is not None and outcome.value.truncated:
            return Outcome(None, f"limit: {outcome.value.truncated}")
        return outcome

    return in_parallel(record, batch)


def _ends(problem: Problem, max_frames: int, limits: Limits, sandbox: Sandbox) -> Outcome[bool]:
    if problem.ends is not None:
        return Outcome(problem.ends)
    outcome = record_program(problem.code, problem.call, max_frames=max_frames, limits=limits, sandbox=sandbox)
    if outcome.value is None:
        return Outcome(None, outcome.reason)
    if outcome.value.truncated in (None, Truncation.MAX_FRAMES):
        return Outcome(outcome.value.truncated is None)
    return Outcome(None, f"limit: {outcome.value.truncated}")


def _predicts_end(tokenizer: Tokenizer, prediction: Prediction, max_frames: int) -> bool | None:
    """Return whether a predicted trace ends within `max_frames` frames; None if it breaks the format before."""
    parsed = prediction.parsed
    if len(parsed.frames) + 1 > max_frames:  # including the first frame, which is in the prompt
        return False
    if parsed.complete:
        return True
    # A frame with an end token inside, or one that is closed, is malformed; any other was cut by the limit of tokens.
    rest = prediction.ids[parsed.error_offset :].tolist() if parsed.error else []
    closing = {tokenizer.special_tokens[name] for name in (FRAME_SEP, END_OF_TEXT)}
    return None if closing.intersection(rest) else False


def _mean_lengths(tokenizer: Tokenizer, parsed: ParsedTrace) -> dict[str, float | None]:
    """Return the mean numbers of tokens of the predicted states and actions."""
    spans = tokenizer.trace_tokens(parsed.trace).spans
    lengths = np.diff(spans, axis=2)[:, :2, 0]
    means = {}
    for part, name in enumerate(("state_tokens", "action_tokens")):
        there = lengths[spans[:, part, 0] >= 0, part]
        means[name] = float(there.mean()) if len(there) else None
    return means


def _agrees(problem: Problem, trace: Trace) -> bool | None:
    """Return whether the recorded result equals the stated one, or None if the problem states no result."""
    if problem.output is None:
        return None
    return trace.result is not None and literals_equal(problem.output, trace.result)


def _balanced(ending: list[float], going_on: list[float], seed: int) -> Measure:
    if not ending or not going_on:
        return Measure("balanced accuracy", None, None, None, 0, IntervalKind.BOOTSTRAP)
    value = (sum(ending) / len(ending) + sum(going_on) / len(going_on)) / 2
    low, high = bootstrap_interval([ending, going_on], seed)
    return Measure("balanced accuracy", value, low, high, len(ending) + len(going_on), IntervalKind.BOOTSTRAP)
