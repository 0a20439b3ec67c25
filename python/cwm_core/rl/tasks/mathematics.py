"""Solve problems with a final answer, which the library `math-verify` compares in a sandbox."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Self

from ...evaluation.answers import Style
from ...machines import HeadTail, Limits, Process, Sandbox, SandboxError
from ...machines.programs import installed_packages
from ...support.jsonl import read_rows
from ...tokenizer import Tokenizer
from . import _mathematics_server
from .formats import FormatError, boxed_answer, without_reasoning
from .protocol import Reward, outcome
from .questions import QuestionTask

MAX_ANSWER_CHARS = 10_000
"""Maximum length of a final answer; longer ones are wrong."""

_START_SECONDS = 60.0  # to import the library
_GRACE = 5.0  # seconds beyond the limit for the server to report
_FOREVER = 10 * 365 * 86400  # seconds
_QUESTION = "{question}\n\nGive the final answer in \\boxed{{}}."


@dataclass(frozen=True)
class MathProblem:
    """A problem and its final answer."""

    id: str
    """Unique id."""
    question: str
    """Text of the problem."""
    answer: str
    """Final answer, as a number or in LaTeX."""


def read_mathematics(path: str | os.PathLike[str]) -> Iterator[MathProblem]:
    """Read problems from JSON lines with the fields `question` or `problem`, and `answer`; `id` is optional.

    Raises:
        ValueError: A field is missing or has the wrong type; the message names the line.
        OSError: The file cannot be read.
    """
    for number, row in read_rows(path):
        question, answer = row.get("question", row.get("problem")), row.get("answer")
        where = f"{os.fspath(path)}, line {number}"
        if not isinstance(question, str):
            raise ValueError(f"{where}: expected the text of the problem in 'question' or 'problem'")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            raise ValueError(f"{where}: expected a text or a number in 'answer'")
        yield MathProblem(str(row.get("id", number)), question, str(answer))


class MathJudge:
    """Judges final answers with `math-verify` in a sandbox; a context manager.

    Answers can make the library compute for hours or fill the memory. Each comparison has a process and limits of its
    own, so such an answer is wrong and costs nothing else. Several threads may call the judge; it compares one answer
    at a time.
    """

    def __init__(
        self,
        *,
        style: Style = "reasoning",
        seconds: float = 5.0,
        memory_bytes: int = 1 << 30,
        sandbox: Sandbox = "bubblewrap",
    ) -> None:
        """Start the sandbox.

        Args:
            style: Form of the answers: "chat" or "reasoning".
            seconds: Time limit of a comparison, in seconds.
            memory_bytes: Maximum memory of the sandbox, in bytes.
            sandbox: The kind of sandbox.

        Raises:
            ModuleNotFoundError: `math-verify` is not installed.
            SandboxError: The sandbox does not work on this machine.
        """
        if find_spec("math_verify") is None:
            message = "mathematics needs math-verify: run pip install '.[rl]' in a checkout of cwm-core"
            raise ModuleNotFoundError(message, name="math_verify")
        self._style, self._seconds, self._sandbox = style, seconds, sandbox
        self._limits = replace(Limits(), seconds=_FOREVER, cpu_seconds=_FOREVER, memory_bytes=memory_bytes, processes=8)
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._start()

    def __call__(self, problem: MathProblem, text: str) -> Reward:
        r"""Return the reward of an answer: one `\boxed{}` with the value of `problem.answer`.

        Raises:
            SandboxError: The sandbox does not start.
        """
        try:
            answer = boxed_answer(without_reasoning(text, self._style))
            if len(answer) > MAX_ANSWER_CHARS:
                raise FormatError(f"the answer has {len(answer)} characters, more than {MAX_ANSWER_CHARS}")
        except FormatError as error:
            return outcome(False, f"format: {error}")
        verdict = self._compare(problem.answer, answer)
        reasons = {b"1": "right answer", b"0": "wrong answer", b"?": "the comparison did not end"}
        return outcome(verdict == b"1", reasons.get(verdict, "the comparison ended its sandbox"))

    def _compare(self, reference: str, answer: str) -> bytes:
        request = {"reference": reference, "answer": answer, "seconds": self._seconds}
        with self._lock:
            for _ in range(2):  # the answer may not be the reason that a sandbox is lost
                if self._process is None:
                    self._start()
                if verdict := self._exchange(json.dumps(request).encode() + b"\n", self._seconds + _GRACE):
                    return verdict
                self._stop()
        return b""

    def _start(self) -> None:
        folders = installed_packages()
        self._log = HeadTail(2000)
        self._process = Process(
            [sys.executable, "-I", _mathematics_server.__file__, *folders],
            folder=None,
            limits=self._limits,
            sandbox=self._sandbox,
            readable=folders,
        )
        if self._exchange(b"", _START_SECONDS) != b"r":
            self._stop()
            log = self._log.value().decode(errors="replace").strip()
            raise SandboxError(
                f"math-verify does not start in the {self._sandbox} sandbox; its output: {log or 'none'}"
            )

    def _exchange(self, data: bytes, seconds: float) -> bytes:
        """Send a request and return the first byte of the answer; none if the sandbox ended or is stuck."""
        assert self._process is not None
        received = bytearray()
        self._process.exchange(data, received.extend, self._log.add, seconds=seconds, until=lambda: len(received) > 0)
        return bytes(received[:1])

    def _stop(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def close(self) -> None:
        """End the sandbox. The next judgement starts a new one."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        """Return the judge."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


class MathTask(QuestionTask[MathProblem]):
    """Solve a problem that has a final answer."""

    def __init__(
        self, tokenizer: Tokenizer, judge: MathJudge, *, style: Style = "reasoning", max_tokens: int = 65_536,
        name: str = "mathematics",
    ) -> None:  # fmt: skip
        """Set how questions are asked.

        Args:
            tokenizer: The model's vocabulary.
            judge: Judges the answers, of the same `style`.
            style: Form of the question: "chat" or "reasoning".
            max_tokens: Maximum number of tokens of an answer.
            name: Name in metrics.

        Raises:
            ValueError: The style is unknown, or the vocabulary lacks a token that ends an answer.
        """
        super().__init__(tokenizer, style=style, max_tokens=max_tokens, name=name)
        self._judge = judge

    def question(self, item: MathProblem) -> str:
        """Return the problem and the form of the answer."""
        return _QUESTION.format(question=item.question.strip())

    def judge(self, item: MathProblem, text: str) -> Reward:
        """See `MathJudge`."""
        return self._judge(item, text)
