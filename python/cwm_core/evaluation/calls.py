"""Evaluate predictions of calls: the return value, and arguments that produce a return value."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from ..machines import Limits, Sandbox, literals_equal
from ..machines.programs import DEFAULT_LIMITS, Outcome, check_sandbox, evaluate_with_arguments, in_parallel
from ..trace import ParsedTrace, last_return
from .answers import Style, ask, fields_of, fill, load_template, question_prompts
from .executions import How, check_how, predict_calls
from .problems import Problem
from .reading import arguments_of_answer, output_of_answer
from .report import Report, Result, count_left_out, measure
from .results import digest, leaving_out, limit_settings, run_batches, too_long
from .statistics import pass_at_k

if TYPE_CHECKING:
    from ..inference import Engine


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
    """Predict the return value of each call. No program runs.

    An answer is correct if it is the same Python literal as the problem's `output`, or the same text if one of the two
    is not a literal. A problem whose prompt exceeds the model's context is left out with the reason.

    Args:
        engine: An engine with a tokenizer.
        problems: Problems with an `output`.
        how: "trace" takes the return value of a predicted trace; "direct" asks a question.
        style: Form of the question; see `ask`.
        template: File with the question, with the fields `{code}` and `{input}`; None uses the built-in one.
        samples: Number of answers to each problem. The report has pass@k for k of 1, 5, 10, 100 and `samples`.
        temperature: Sampling temperature; 0 takes the most likely token.
        top_p: Nucleus sampling threshold.
        max_new_tokens: Maximum number of tokens in an answer.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: The template lacks a field, there are several samples at temperature 0, or `folder` holds results of
            other settings.
    """
    from ..inference import trace_prompt

    check_how(how)
    _check_samples(samples, temperature)
    text = load_template(template_name("output", style), ("code", "input"), template) if how == "direct" else ""
    sampling = {"temperature": temperature, "top_p": top_p}

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        if how == "trace":
            prompts = [trace_prompt(engine.tokenizer, problem.code, problem.call) for problem in batch]
        else:
            prompts = question_prompts(engine.tokenizer, [fill(text, **fields_of(problem)) for problem in batch], style)
        return leaving_out(batch, too_long(engine, prompts, max_new_tokens), lambda kept: answer(kept, seed))

    def answer(batch: Sequence[Problem], seed: int) -> list[Result]:
        drawn = [problem for problem in batch for _ in range(samples)]
        answers: list[str | None]
        if how == "trace":
            predictions = predict_calls(engine, drawn, max_new_tokens, seed=seed, **sampling)
            answers = [_last_return(prediction.parsed) for prediction in predictions]
        else:
            questions = [fill(text, **fields_of(problem)) for problem in drawn]
            said = ask(engine, questions, style, max_new_tokens, seed=seed, **sampling)
            answers = [None if answer is None else output_of_answer(answer) for answer in said]
        right = [
            answer is not None and literals_equal(str(problem.output), answer)
            for problem, answer in zip(drawn, answers, strict=True)
        ]
        return _sampled(batch, samples, answers=answers, right=right)

    settings: dict[str, Any] = {
        "how": how,
        "style": style,
        "samples": samples,
        **sampling,
        "max_new_tokens": max_new_tokens,
        "template": digest(text),
    }
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
    sandbox: Sandbox = "bubblewrap",
    **options: Any,
) -> Report:
    """Predict arguments with which each program returns its `output`. A sandbox runs the program with each answer.

    An answer is correct if its arguments are Python literals by value and the program returns the `output`; see
    `evaluate_with_arguments`.

    Args:
        engine: An engine with a tokenizer.
        problems: Problems with an `output`.
        style: Form of the question; see `ask`.
        template: File with the question, with the fields `{code}` and `{output}`; None uses the built-in one.
        samples: Number of answers to each problem. The report has pass@k for k of 1, 5, 10, 100 and `samples`.
        temperature: Sampling temperature; 0 takes the most likely token.
        top_p: Nucleus sampling threshold.
        max_new_tokens: Maximum number of tokens in an answer.
        limits: Limits of each program; see `Limits`.
        sandbox: Isolation of the programs. Use "process" only for trusted programs and models.
        options: Arguments of `run_batches`: `folder`, `batch`, `seed`, `progress` and `settings`.

    Raises:
        ValueError: The template lacks a field, there are several samples at temperature 0, or `folder` holds results of
            other settings.
        SandboxError: The sandbox does not work on this machine.
    """
    check_sandbox(sandbox)
    _check_samples(samples, temperature)
    text = load_template(template_name("input", style), ("code", "output"), template)
    sampling = {"temperature": temperature, "top_p": top_p}

    def solve(batch: Sequence[Problem], seed: int) -> list[Result]:
        prompts = question_prompts(engine.tokenizer, [fill(text, **fields_of(problem)) for problem in batch], style)
        return leaving_out(batch, too_long(engine, prompts, max_new_tokens), lambda kept: answer(kept, seed))

    def answer(batch: Sequence[Problem], seed: int) -> list[Result]:
        drawn = [problem for problem in batch for _ in range(samples)]
        questions = [fill(text, **fields_of(problem)) for problem in drawn]
        said = ask(engine, questions, style, max_new_tokens, seed=seed, **sampling)
        answers = [None if answer is None else arguments_of_answer(answer) for answer in said]
        codes = [problem.code for problem in drawn]
        tries = list(dict.fromkeys(zip(codes, answers, strict=True)))  # run equal answers once
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
        return evaluate_with_arguments(code, arguments, limits=limits, sandbox=sandbox)

    settings = {
        "style": style,
        "samples": samples,
        **sampling,
        "max_new_tokens": max_new_tokens,
        **limit_settings(limits),
    }
    settings["template"] = digest(text)
    results, settings = run_batches("input", problems, solve, settings, **options)
    return _report_of_samples("input", problems, results, settings)


def _last_return(parsed: ParsedTrace) -> str | None:
    frames = list(parsed.frames)
    returned = last_return(frames, complete=parsed.complete, depth=1)
    return None if returned is None else frames[returned].arg


def _sampled(batch: Sequence[Problem], samples: int, **columns: Sequence[Any]) -> list[Result]:
    """Return a result for each problem, with its `samples` consecutive entries of each column."""
    return [
        Result(problem.id, {name: list(column[i * samples : (i + 1) * samples]) for name, column in columns.items()})
        for i, problem in enumerate(batch)
    ]


def _report_of_samples(
    task: str, problems: Sequence[Problem], results: list[Result], settings: dict[str, Any]
) -> Report:
    samples = settings["samples"]
    solved = [result.values for result in results if result.left_out is None]
    measures = [
        measure(
            f"pass@{k}",
            [pass_at_k(samples, sum(result["right"]), k) for result in solved],
            share=samples == 1,
            seed=settings["seed"],
        )
        for k in sorted({1, samples, *(k for k in (5, 10, 100) if k < samples)})
    ]
    answered = [sum(answer is not None for answer in result["answers"]) / samples for result in solved]
    measures.append(measure("answered", answered, share=samples == 1, seed=settings["seed"]))
    return Report(task, settings, measures, len(problems), count_left_out(results), results)


def template_name(task: Literal["output", "input"], style: Style) -> str:
    """Return the name of the built-in template of a question."""
    return f"{task}_{'completion' if style == 'completion' else 'chat'}"


def _check_samples(samples: int, temperature: float) -> None:
    if samples < 1 or (samples > 1 and temperature <= 0):
        raise ValueError(f"{samples} samples at temperature {temperature}: several samples need a temperature above 0")
