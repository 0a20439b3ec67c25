"""Write programs that pass hidden tests."""

from __future__ import annotations

import warnings

from ...corpus.contests import ContestProblem, ContestTest, accepts_output, accepts_value, callee_of, tolerance_of
from ...corpus.judging import run_program
from ...corpus.prelude import with_prelude
from ...evaluation.answers import Style
from ...machines import Limits, Sandbox, SandboxError
from ...machines.programs import DEFAULT_LIMITS, check_sandbox, evaluate_call
from ...tokenizer import Tokenizer
from .formats import FormatError, code_block, without_reasoning
from .protocol import Reward, outcome
from .questions import QuestionTask

MAX_CODE_CHARS = 50_000
"""Maximum length of a program; longer ones are wrong."""

_QUESTION = """{statement}

Solve the problem in Python 3. {form} Give the program in one code block:

```python
...
```"""
_PROGRAM = "The program reads standard input and prints to standard output."
_FUNCTION = "Define the function `{function}`; do not call it."


def judge_program(
    contest: ContestProblem,
    text: str,
    *,
    style: Style = "reasoning",
    limits: Limits = DEFAULT_LIMITS,
    sandbox: Sandbox = "bubblewrap",
) -> Reward:
    """Return the reward of a program: it must pass every test, each in a sandbox of its own.

    The sandbox contains the input of one test and no expected output. A whole program is judged by what it prints and
    its exit code; a function by the `repr` of its value, which must be a literal. Both are compared outside of the
    sandbox, so a program can only pass a test with the right answer.

    Args:
        contest: The problem, with at least one test.
        text: The model's answer: one code block, after the reasoning if the style is "reasoning".
        style: Form of the answer: "chat" or "reasoning".
        limits: Limits of each run.
        sandbox: The kind of sandbox. "process" does not hide files of this host, which may contain the tests.

    Raises:
        ValueError: The problem has no tests.
        SandboxError: The sandbox does not work on this machine.
    """
    if not contest.tests:
        raise ValueError(f"problem {contest.name} has no tests")
    try:
        code = _complete(code_block(without_reasoning(text, style)))
    except FormatError as error:
        return outcome(False, f"format: {error}")
    tolerance = tolerance_of(test.output for test in contest.tests)
    for number, test in enumerate(contest.tests):
        try:
            fault = _fault(contest, code, test, tolerance=tolerance, limits=limits, sandbox=sandbox)
        except SandboxError:
            check_sandbox(sandbox)  # raises if the machine is at fault
            fault = "ended its sandbox"
        if fault is not None:
            return outcome(False, f"test {number}: {fault}")
    return outcome(True, "passed all tests")


def _complete(code: str) -> str:
    """Return a program with the imports that graders provide. Raise FormatError if it does not compile."""
    if len(code) > MAX_CODE_CHARS:
        raise FormatError(f"the program has {len(code)} characters, more than {MAX_CODE_CHARS}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes such as "\d"
            compile(code, "<program>", "exec", dont_inherit=True)
            return with_prelude(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        raise FormatError(f"the program does not compile: {error}") from None


def _fault(
    contest: ContestProblem,
    code: str,
    test: ContestTest,
    *,
    tolerance: float | None,
    limits: Limits,
    sandbox: Sandbox,
) -> str | None:
    """Return why a program fails a test, or None if it passes."""
    if contest.function is not None:
        call = f"{callee_of(code, contest.function)}({test.input})"
        returned = evaluate_call(code, call, limits=limits, sandbox=sandbox)
        if returned.value is None:
            return returned.reason
        accepted = accepts_value(returned.value, test.output, tolerance)
        return None if accepted else "wrong value" if accepted is False else "the value is not a literal"
    done = run_program(code, test.input, limits, sandbox)
    if done.exceeded is not None:
        return f"limit: {done.exceeded}"
    if done.exit_code != 0:
        return f"exit code {done.exit_code}" if done.signal is None else f"signal {done.signal}"
    if done.truncated:
        return "limit: output_bytes"
    return None if accepts_output(done.stdout.decode("utf-8", "replace"), test.output, tolerance) else "wrong output"


class CodingTask(QuestionTask[ContestProblem]):
    """Write a program, or a function, that passes the tests of a contest problem."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        style: Style = "reasoning",
        max_tokens: int = 65_536,
        name: str = "coding",
        limits: Limits = DEFAULT_LIMITS,
        sandbox: Sandbox = "bubblewrap",
    ) -> None:
        """Set how questions are asked and how programs run.

        Args:
            tokenizer: The model's vocabulary.
            style: Form of the question: "chat" or "reasoning".
            max_tokens: Maximum number of tokens of an answer. The default is that of the Code World Model.
            name: Name in metrics.
            limits: Limits of each run.
            sandbox: The kind of sandbox.

        Raises:
            ValueError: The style is unknown or "completion", or the vocabulary lacks a token that ends an answer.
        """
        if style == "completion":
            raise ValueError('a program has several lines; expected the style "chat" or "reasoning"')
        super().__init__(tokenizer, style=style, max_tokens=max_tokens, name=name)
        self._limits, self._sandbox = limits, sandbox

    def question(self, item: ContestProblem) -> str:
        """Return the statement and the form of the answer. Raise ValueError if the problem has no statement."""
        if not item.statement:
            raise ValueError(f"problem {item.name} has no statement (field 'description' or 'question')")
        form = _PROGRAM if item.function is None else _FUNCTION.format(function=item.function)
        return _QUESTION.replace("{form}", form).replace("{statement}", item.statement.strip())

    def judge(self, item: ContestProblem, text: str) -> Reward:
        """See `judge_program`."""
        return judge_program(item, text, style=self.style, limits=self._limits, sandbox=self._sandbox)
