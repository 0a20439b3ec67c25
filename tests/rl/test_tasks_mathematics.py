"""Final answers of mathematics: right ones, and ones that are wrong, out of format, or endless."""

import json
import os
import signal

import pytest
from cwm_core.machines import bubblewrap_refusal
from cwm_core.rl.tasks import MathJudge, MathProblem, read_mathematics

pytest.importorskip("math_verify")
pytestmark = pytest.mark.skipif(bubblewrap_refusal() is not None, reason=f"no bubblewrap: {bubblewrap_refusal()}")


@pytest.fixture(scope="module")
def judge():
    with MathJudge() as judge:
        yield judge


def boxed(answer):
    return f"Let me see.\n</think>\nThe answer is $\\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    ("reference", "answer", "solved"),
    [
        ("5", "5", True), ("5", "x = 5", True), (r"\frac12", "0.5", True), ("1/2", r"\frac{2}{4}", True),
        ("x+1", "1+x", True), (r"(1,2)", "(1, 2)", True), (r"\text{A}", "A", True), ("120", "5!", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True), ("5", r"\frac{10}{2}", True),
        ("5", "6", False), ("5", "5, 6", False), ("5", r"5 \text{ or } 6", False), ("5", r"\{5, 6\}", False),
        ("5", "5 = 6", False), ("5", "", False), ("(1,2)", "[1,2]", False), ("A", "B", False),
        ("5", "__import__('os')._exit(0)", False), ("5", "x", False), ("5", r"\pm 5", False),
    ],
)  # fmt: skip
def test_answers(judge, reference, answer, solved):
    reward = judge(MathProblem("a", "?", reference), boxed(answer))
    assert (reward.value, reward.solved) == (1.0 if solved else -1.0, solved), reward.reasons


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{5}",
        r"</think></think>\boxed{5}",
        r"\boxed{5}</think>",
        "</think>5",
        r"</think>\boxed{5} or \boxed{6}",
        r"</think>\boxed{5",
        r"</think>\boxed{5\}",
        r"</think>\boxed{\boxed{5}}",
        rf"</think>\boxed{{{'1' * 20_000}}}",
    ],
)
def test_answers_out_of_format_get_nothing(judge, text):
    reward = judge(MathProblem("a", "?", "5"), text)
    assert reward.value == -1.0 and reward.reasons[0].startswith("format: ")


def test_endless_and_huge_answers_cost_only_themselves():
    with MathJudge(seconds=1.0, memory_bytes=300 << 20) as judge:
        problem = MathProblem("a", "?", "5")
        assert judge(problem, boxed("10^{10^{10^{10}}}")).reasons == ("the comparison did not end",)
        os.killpg(judge._process._popen.pid, signal.SIGKILL)
        assert judge(problem, boxed("5")).solved
    assert judge(problem, boxed("5")).solved  # starts again
    judge.close()


def test_problems_are_read(tmp_path):
    file = tmp_path / "problems.jsonl"
    rows = [{"problem": "1 + 1?", "answer": 2, "id": "a"}, {"question": "Half?", "answer": r"\frac12"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert list(read_mathematics(file)) == [MathProblem("a", "1 + 1?", "2"), MathProblem("2", "Half?", r"\frac12")]
    for row, fault in (({"answer": 1}, "'question'"), ({"question": "a", "answer": [1]}, "'answer'")):
        file.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=f"line 1: expected .*{fault}"):
            list(read_mathematics(file))
