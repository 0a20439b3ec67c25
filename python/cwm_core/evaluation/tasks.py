"""The evaluations: what executions look like, what programs return, what to call them with, and whether they end.

Each goes through the problems in batches, of which the results are kept in `folder` as soon as they are there; called
again with the same settings it goes on behind them, and ends with what it would have found uninterrupted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..sandbox import Backend, Limits, literals_equal
from ..trace import ParsedTrace, Trace
from .answers import (
    Style,
    answer_logprobs,
    arguments_of_answer,
    ask,
    completion_prompt,
    fields_of,
    fill,
    load_template,
    output_of_answer,
)
from .problems import Problem
from .programs import (
    DEFAULT_LIMITS,
    Outcome,
    check_sandbox,
    evaluate_with_arguments,
    in_parallel,
    record_program,
)
from .report import Measure, Report, Result, Results, count_left_out, measure
from .statistics import bootstrap_interval, pass_at_k
from .traces import TraceScores, score_trace

if TYPE_CHECKING:
    from ..inference import Engine

How = Literal["trace", "direct"]
Progress = Callable[[int, int], object]

BATCH = 64
"""Problems that are predicted together, unless a caller says otherwise."""

CWM_32B_ON_CRUXEVAL = {
    "output": 0.880, "valid_format": 0.996, "state": 0.969, "action": 0.965, "valid_json": 1.000, "key": 0.991,
    "key_value": 0.981, "state tokens": 11.7, "action tokens": 11.2,
}  # fmt: skip
"""What the technical report of the Code World Model (arXiv 2510.02387, Table 9) gives; shares, and tokens."""

# Of the trace scores, those that are 0 or 1 for each trace.
_SHARES = ("output", "valid_format")


def evaluate_traces(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    max_new_tokens: int = 4096,
    max_frames: int = 2000,
    cruxeval: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    backend: Backend = "bubblewrap",
    predict_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Predict the execution of each program greedily, and score it against the real one, recorded in a sandbox.

    The scores are those of `TraceScores`; besides, the mean number of tokens of a predicted state and action, means
    over traces of each trace's mean. A program that cannot be recorded whole is left out, with the reason.

    Args:
        engine: An `Engine` with a tokenizer, or what has its `generate` and `tokenizer`.
        problems: Of `read_problems`; where there is an `output`, it is looked at whether the recording agrees.
        max_new_tokens: A prediction stops there.
        max_frames: Programs that go on after so many frames are left out.
        cruxeval: Put the published scores of CWM 32B beside: for the problems of CruxEval only.
        limits: What a program may use; see `Limits`.
        backend: The sandbox. Programs of data sets are not trusted: "process" is for those that are.
        predict_options: Further keywords of `predict_traces`.
        options: `folder`, `batch`, `seed`, `progress` and `settings`, as of `run_batches`.

    Raises ValueError for other settings than those of the results in `folder`, SandboxError when the sandbox is not
    possible here.
    """
    from ..inference import predict_traces

    check_sandbox(backend)
    predict_options = dict(predict_options or {})

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        recorded = _record(batch, max_frames, limits, backend)
        traces = [outcome.value for outcome in recorded if outcome.value is not None]
        predictions = predict_traces(engine, traces, max_new_tokens=max_new_tokens, **predict_options)
        rest = iter(predictions)
        results = []
        for problem, outcome in zip(batch, recorded, strict=True):
            if outcome.value is None:
                results.append({"id": problem.id, "left_out": outcome.reason})
                continue
            prediction = next(rest)
            results.append(
                {
                    "id": problem.id,
                    "scores": asdict(score_trace(outcome.value, prediction.parsed)),
                    "frames": len(outcome.value) - 1,
                    "predicted_frames": len(prediction.parsed.frames),
                    "tokens": len(prediction.ids),
                    "error": prediction.parsed.error,
                    **_mean_lengths(engine.tokenizer, prediction.parsed),
                    "agrees": _agrees(problem, outcome.value),
                }
            )
        return results

    settings = {"max_new_tokens": max_new_tokens, "max_frames": max_frames, **_plain(limits), **predict_options}
    results, settings = run_batches("traces", problems, solve, settings, **options)
    seed = settings["seed"]
    published = CWM_32B_ON_CRUXEVAL if cruxeval else {}
    scored = [result for result in results if "scores" in result]
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


def evaluate_output(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    how: How = "direct",
    style: Style = "completion",
    template: str | os.PathLike[str] | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    **options: Any,
) -> Report:
    """Predict what each call returns; right is the same Python literal, else the same text. Nothing is run.

    Args:
        engine: As of `evaluate_traces`.
        problems: With `output`.
        how: "trace": the last return value of a predicted trace; "direct": the answer to a question.
        style: How the question is put; see `ask`.
        template: A file to use in place of our own question, with `{code}` and `{input}` in it.
        samples: Answers drawn for each problem; with several, pass@k for k of 1, 5, 10, 100 and `samples`.
        temperature: As of `Engine.generate`, as `top_p`.
        top_p: See there.
        max_new_tokens: An answer stops there.
        options: As of `evaluate_traces`.

    Raises ValueError as `evaluate_traces`, for a template that lacks a field, and for several samples at temperature 0.
    """
    _check_how(how)
    _check_samples(samples, temperature)
    text = load_template(_template_name("output", style), ("code", "input"), template) if how == "direct" else ""
    sampling = {"temperature": temperature, "top_p": top_p}

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        drawn = [problem for problem in batch for _ in range(samples)]
        answers: list[str | None]
        if how == "trace":
            parsed = _predict_calls(engine, drawn, max_new_tokens, seed=seed, **sampling)
            answers = [_last_return(one) for one in parsed]
        else:
            questions = [fill(text, **fields_of(problem)) for problem in drawn]
            said = ask(engine, questions, style, max_new_tokens, seed=seed, **sampling)
            answers = [None if answer is None else output_of_answer(answer) for answer in said]
        right = [
            answer is not None and literals_equal(str(problem.output), answer)
            for problem, answer in zip(drawn, answers, strict=True)
        ]
        return _sampled(batch, samples, answers=answers, right=right)

    settings = {"how": how, "style": style, "samples": samples, **sampling, "max_new_tokens": max_new_tokens}
    settings["template"] = _digest(text)
    results, settings = run_batches("output", problems, solve, settings, **options)
    return _report_of_samples("output", problems, results, settings)


def evaluate_input(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    style: Style = "completion",
    template: str | os.PathLike[str] | None = None,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 4096,
    limits: Limits = DEFAULT_LIMITS,
    backend: Backend = "bubblewrap",
    **options: Any,
) -> Report:
    """Ask for arguments with which each program returns its `output`; any that do, tried in a sandbox, are right.

    An answer's arguments must be Python literals by value; see `evaluate_with_arguments`. Arguments are as of
    `evaluate_output`, the template's fields `{code}` and `{output}`, and as of `evaluate_traces`.
    """
    check_sandbox(backend)
    _check_samples(samples, temperature)
    text = load_template(_template_name("input", style), ("code", "output"), template)
    sampling = {"temperature": temperature, "top_p": top_p}

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        drawn = [problem for problem in batch for _ in range(samples)]
        questions = [fill(text, **fields_of(problem)) for problem in drawn]
        said = ask(engine, questions, style, max_new_tokens, seed=seed, **sampling)
        answers = [None if answer is None else arguments_of_answer(answer) for answer in said]
        codes = [problem.code for problem in drawn]
        tries = list(dict.fromkeys(zip(codes, answers, strict=True)))  # each answer to a problem is run once
        tried = dict(zip(tries, in_parallel(lambda one: _try(*one), tries), strict=True))
        outcomes = [tried[one] for one in zip(codes, answers, strict=True)]
        right = [
            outcome.value is not None and literals_equal(str(problem.output), outcome.value)
            for problem, outcome in zip(drawn, outcomes, strict=True)
        ]
        gave = [outcome.reason if outcome.value is None else outcome.value[:1000] for outcome in outcomes]
        return _sampled(batch, samples, answers=answers, right=right, gave=gave)

    def _try(code: str, arguments: str | None) -> Outcome[str]:
        if arguments is None:
            return Outcome(None, "no answer")
        return evaluate_with_arguments(code, arguments, limits=limits, backend=backend)

    settings = {"style": style, "samples": samples, **sampling, "max_new_tokens": max_new_tokens, **_plain(limits)}
    settings["template"] = _digest(text)
    results, settings = run_batches("input", problems, solve, settings, **options)
    return _report_of_samples("input", problems, results, settings)


def evaluate_termination(
    engine: Engine,
    problems: Sequence[Problem],
    *,
    how: How = "trace",
    template: str | os.PathLike[str] | None = None,
    max_frames: int = 2000,
    max_new_tokens: int = 32768,
    limits: Limits = DEFAULT_LIMITS,
    backend: Backend = "bubblewrap",
    **options: Any,
) -> Report:
    """Tell whether each call ends within `max_frames` frames of its trace.

    The truth is the problem's `ends`, else a recording in a sandbox. With `how` "trace", a predicted trace that ends
    within `max_frames` frames says yes; one that has more frames, or uses up `max_new_tokens`, says no; one that breaks
    the format says nothing, which is wrong. With "direct", the more probable of two answers to a question counts; a
    `template` in place of our own has the fields `{code}`, `{input}` and perhaps `{steps}`, and ends before " yes" or
    " no".

    Accuracy and balanced accuracy (mean share of right answers among calls that end and among those that do not) are
    of the problems whose truth is known. Other arguments and errors are as of `evaluate_traces`.
    """
    _check_how(how)
    if any(problem.ends is None for problem in problems):
        check_sandbox(backend)
    text = load_template("termination", ("code", "input"), template) if how == "direct" else ""

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        truths = in_parallel(lambda problem: _ends(problem, max_frames, limits, backend), batch)
        known = [problem for problem, truth in zip(batch, truths, strict=True) if truth.value is not None]
        rest = iter(predict(known))
        return [
            {"id": problem.id, "left_out": truth.reason}
            if truth.value is None
            else {"id": problem.id, "ends": truth.value, **next(rest)}
            for problem, truth in zip(batch, truths, strict=True)
        ]

    def predict(known: Sequence[Problem]) -> list[Result]:
        if how == "trace":
            parsed = _predict_calls(engine, known, max_new_tokens)
            return [{"predicted": _predicts_end(one, max_frames), "frames": len(one.frames) + 1} for one in parsed]
        questions = [fill(text, **fields_of(problem), steps=max_frames) for problem in known]
        prompts = [completion_prompt(engine.tokenizer, question) for question in questions]
        logprobs = answer_logprobs(engine, prompts, [engine.tokenizer.encode(answer) for answer in (" yes", " no")])
        return [{"predicted": bool(yes > no), "logprobs": [yes, no]} for yes, no in logprobs.tolist()]

    settings = {"how": how, "max_frames": max_frames, "max_new_tokens": max_new_tokens, **_plain(limits)}
    settings["template"] = _digest(text)
    results, settings = run_batches("termination", problems, solve, settings, **options)
    scored = [result for result in results if "ends" in result]
    right = {truth: [float(r["predicted"] is truth) for r in scored if r["ends"] is truth] for truth in (True, False)}
    names = {True: "ends", False: "goes on", None: "says nothing"}
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


def run_batches(
    task: str,
    problems: Sequence[Problem],
    solve: Callable[[Sequence[Problem], int], list[Result]],
    task_settings: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str] | None = None,
    batch: int = BATCH,
    seed: int = 0,
    progress: Progress | None = None,
    settings: Mapping[str, Any] | None = None,
) -> tuple[list[Result], dict[str, Any]]:
    """Results of all problems, in their order, and the settings that they belong to.

    Args:
        task: Its name.
        problems: With ids that occur once.
        solve: Called with each batch and a seed of its own; gives a result for each problem, in order.
        task_settings: What results depend on.
        folder: Where results are kept and found again.
        batch: Problems of a batch; what is drawn at random depends on it.
        seed: Of all that is drawn at random.
        progress: Called with the number of problems that are done, and that of all.
        settings: More that results depend on, such as the name of the model.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    dataset = _digest(json.dumps([asdict(problem) for problem in problems]))
    all_settings = {"task": task, **(settings or {}), **task_settings, "batch": batch, "seed": seed, "dataset": dataset}
    results = Results(folder, all_settings)
    try:
        for start in range(0, len(problems), batch):
            part = problems[start : start + batch]
            if not all(problem.id in results for problem in part):
                # Whole again where it was interrupted within: what is drawn depends on a prompt's place in its batch.
                own_seed = int(np.random.SeedSequence([seed, start // batch]).generate_state(1)[0])
                results.add(solve(part, own_seed))
            if progress:
                progress(start + len(part), len(problems))
    finally:
        results.close()
    return [results[problem.id] for problem in problems], all_settings


def _record(batch: Sequence[Problem], max_frames: int, limits: Limits, backend: Backend) -> list[Outcome[Trace]]:
    """Traces of whole executions."""

    def record(problem: Problem) -> Outcome[Trace]:
        outcome = record_program(problem.code, problem.call, max_frames=max_frames, limits=limits, backend=backend)
        if outcome.value is not None and outcome.value.truncated:
            return Outcome(None, f"limit: {outcome.value.truncated}")
        return outcome

    return in_parallel(record, batch)


def _ends(problem: Problem, max_frames: int, limits: Limits, backend: Backend) -> Outcome[bool]:
    if problem.ends is not None:
        return Outcome(problem.ends)
    outcome = record_program(problem.code, problem.call, max_frames=max_frames, limits=limits, backend=backend)
    if outcome.value is None:
        return Outcome(None, outcome.reason)
    if outcome.value.truncated in (None, "max_frames"):
        return Outcome(outcome.value.truncated is None)
    return Outcome(None, f"limit: {outcome.value.truncated}")


def _predict_calls(
    engine: Engine, problems: Sequence[Problem], max_new_tokens: int, **sampling: Any
) -> list[ParsedTrace]:
    """The predicted frames of each call after the first."""
    from ..inference import trace_prompt

    tokenizer = engine.tokenizer
    prompts = [trace_prompt(tokenizer, problem.code, problem.call) for problem in problems]
    stop = tokenizer.special_tokens["<|end_of_text|>"]
    generations = engine.generate(prompts, max_new_tokens, [stop], **sampling)
    return [tokenizer.parse_trace(generation.ids) for generation in generations]


def _predicts_end(parsed: ParsedTrace, max_frames: int) -> bool | None:
    if len(parsed.frames) + 1 > max_frames:  # with the first, which stood in the prompt
        return False
    if parsed.complete:
        return True
    return None if parsed.error else False


def _last_return(parsed: ParsedTrace) -> str | None:
    return next((frame.arg for frame in reversed(list(parsed.frames)) if frame.event == "return"), None)


def _mean_lengths(tokenizer: Any, parsed: ParsedTrace) -> dict[str, float | None]:
    """Mean tokens of the states and actions that were predicted."""
    spans, _ = tokenizer.trace_spans(parsed.trace)
    lengths = np.diff(spans, axis=2)[:, :2, 0]
    means = {}
    for part, name in enumerate(("state_tokens", "action_tokens")):
        there = lengths[spans[:, part, 0] >= 0, part]
        means[name] = float(there.mean()) if len(there) else None
    return means


def _agrees(problem: Problem, trace: Trace) -> bool | None:
    """Whether the recorded result is the stated one; None where none is stated."""
    if problem.output is None:
        return None
    return trace.result is not None and literals_equal(problem.output, trace.result)


def _sampled(batch: Sequence[Problem], samples: int, **columns: Sequence[Any]) -> list[Result]:
    """A result for each problem of its `samples` consecutive entries in each column."""
    return [
        {"id": problem.id, **{name: list(column[i * samples : (i + 1) * samples]) for name, column in columns.items()}}
        for i, problem in enumerate(batch)
    ]


def _report_of_samples(
    task: str, problems: Sequence[Problem], results: list[Result], settings: dict[str, Any]
) -> Report:
    samples = settings["samples"]
    measures = [
        measure(
            f"pass@{k}",
            [pass_at_k(samples, sum(result["right"]), k) for result in results],
            share=samples == 1,
            seed=settings["seed"],
        )
        for k in sorted({1, samples, *(k for k in (5, 10, 100) if k < samples)})
    ]
    answered = [sum(answer is not None for answer in result["answers"]) / samples for result in results]
    measures.append(measure("answered", answered, share=samples == 1, seed=settings["seed"]))
    return Report(task, settings, measures, len(problems), count_left_out(results), results)


def _balanced(ending: list[float], going_on: list[float], seed: int) -> Measure:
    if not ending or not going_on:
        return Measure("balanced accuracy", None, None, None, 0, "bootstrap")
    value = (sum(ending) / len(ending) + sum(going_on) / len(going_on)) / 2
    low, high = bootstrap_interval([ending, going_on], seed)
    return Measure("balanced accuracy", value, low, high, len(ending) + len(going_on), "bootstrap")


def _template_name(task: str, style: Style) -> str:
    return f"{task}_{'completion' if style == 'completion' else 'chat'}"


def _check_how(how: str) -> None:
    if how not in ("trace", "direct"):
        raise ValueError(f'how must be "trace" or "direct", not {how!r}')


def _check_samples(samples: int, temperature: float) -> None:
    if samples < 1 or (samples > 1 and temperature <= 0):
        raise ValueError(f"{samples} samples at temperature {temperature}: several need one above 0")


def _plain(limits: Limits) -> dict[str, Any]:
    return {f"limit_{name}": value for name, value in asdict(limits).items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
