"""Predict the output of a call directly, or find an input for an output."""

from __future__ import annotations

import os

from ...evaluation import Problem
from ...evaluation.answers import Style, fields_of, fill, load_template
from ...evaluation.calls import template_name
from ...evaluation.reading import arguments_of_answer, output_of_answer
from ...machines import Limits, Sandbox
from ...machines.programs import DEFAULT_LIMITS, evaluate_with_arguments
from ...tokenizer import Tokenizer
from .formats import FormatError, marked_answer, without_reasoning
from .protocol import Reward, is_value, outcome
from .questions import QuestionTask


def judge_output(problem: Problem, text: str, *, style: Style = "reasoning") -> Reward:
    """Return the reward of a predicted return value. Nothing runs: it is compared with `problem.output` as a literal.

    Args:
        problem: A problem with an `output`.
        text: The model's answer.
        style: Form of the answer: its first line ("completion"), or a value between `[ANSWER]` and `[/ANSWER]`, after
            the reasoning if the style is "reasoning".

    Raises:
        ValueError: The problem has no output.
    """
    if problem.output is None:
        raise ValueError(f"problem {problem.id} has no output to compare with; record_executions records it")
    try:
        answer = output_of_answer(_answer(text, style))
    except FormatError as error:
        return outcome(False, f"format: {error}")
    right = is_value(answer, problem.output)
    return outcome(right, "right output" if right else "wrong output")


def judge_input(
    problem: Problem,
    text: str,
    *,
    style: Style = "reasoning",
    limits: Limits = DEFAULT_LIMITS,
    sandbox: Sandbox = "bubblewrap",
) -> Reward:
    """Return the reward of arguments for which the program returns `problem.output`. A sandbox runs the program.

    The arguments must be literals, so they are data when the program runs; see `evaluate_with_arguments`.

    Args:
        problem: A problem with an `output`.
        text: The model's answer, in the form that `judge_output` describes.
        style: Form of the answer.
        limits: Limits of each run.
        sandbox: The kind of sandbox.

    Raises:
        ValueError: The problem has no output.
    """
    if problem.output is None:
        raise ValueError(f"problem {problem.id} has no output to aim at; record_executions records it")
    try:
        arguments = arguments_of_answer(_answer(text, style))
    except FormatError as error:
        return outcome(False, f"format: {error}")
    returned = evaluate_with_arguments(problem.code, arguments, limits=limits, sandbox=sandbox)
    if returned.value is None:
        return outcome(False, f"input: {returned.reason}")
    right = is_value(returned.value, problem.output)
    return outcome(right, "right input" if right else "input: the program returns another value")


class OutputTask(QuestionTask[Problem]):
    """Predict the return value of a call directly, without its trace."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        style: Style = "reasoning",
        template: str | os.PathLike[str] | None = None,
        max_tokens: int = 4096,
        name: str = "output",
    ) -> None:
        """Set how questions are asked.

        Args:
            tokenizer: The model's vocabulary.
            style: Form of the question and the answer.
            template: File with the question, with the fields `{code}` and `{input}`; None uses the built-in one.
            max_tokens: Maximum number of tokens of an answer.
            name: Name in metrics.

        Raises:
            ValueError: The style is unknown, or the template lacks a field.
        """
        super().__init__(tokenizer, style=style, max_tokens=max_tokens, name=name)
        self._template = load_template(template_name("output", style), ("code", "input"), template)

    def question(self, item: Problem) -> str:
        """Return the program and the call."""
        return fill(self._template, **fields_of(item))

    def judge(self, item: Problem, text: str) -> Reward:
        """See `judge_output`."""
        return judge_output(item, text, style=self.style)


class InputTask(QuestionTask[Problem]):
    """Find arguments for which a program returns a value."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        style: Style = "reasoning",
        template: str | os.PathLike[str] | None = None,
        max_tokens: int = 4096,
        name: str = "input",
        limits: Limits = DEFAULT_LIMITS,
        sandbox: Sandbox = "bubblewrap",
    ) -> None:
        """Set how questions are asked and how programs run.

        Args:
            tokenizer: The model's vocabulary.
            style: Form of the question and the answer.
            template: File with the question, with the fields `{code}` and `{output}`; None uses the built-in one.
            max_tokens: Maximum number of tokens of an answer.
            name: Name in metrics.
            limits: Limits of each run.
            sandbox: The kind of sandbox.

        Raises:
            ValueError: The style is unknown, or the template lacks a field.
        """
        super().__init__(tokenizer, style=style, max_tokens=max_tokens, name=name)
        self._template = load_template(template_name("input", style), ("code", "output"), template)
        self._limits, self._sandbox = limits, sandbox

    def question(self, item: Problem) -> str:
        """Return the program and the output."""
        return fill(self._template, **fields_of(item))

    def judge(self, item: Problem, text: str) -> Reward:
        """See `judge_input`."""
        return judge_input(item, text, style=self.style, limits=self._limits, sandbox=self._sandbox)


def _answer(text: str, style: Style) -> str:
    if style == "completion":
        return text.partition("\n")[0].strip()
    return marked_answer(without_reasoning(text, style))
