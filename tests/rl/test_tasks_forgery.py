"""Rewards that hostile answers try to forge, and answers that hang, crash, or leak."""

import dataclasses
import json
import os
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.corpus.contests import ContestProblem, ContestTest, read_contests
from cwm_core.evaluation import Problem
from cwm_core.machines import bubblewrap_refusal
from cwm_core.machines.programs import DEFAULT_LIMITS
from cwm_core.rl.tasks import CodingTask, InputTask, OutputTask, judge_input, judge_output, judge_program
from cwm_core.tokenizer.special_tokens import CHAT_TOKENS, TRACE_TOKENS

pytestmark = pytest.mark.skipif(bubblewrap_refusal() is not None, reason=f"no bubblewrap: {bubblewrap_refusal()}")

# For what must fail, so that a slow machine changes nothing.
LIMITS = dataclasses.replace(DEFAULT_LIMITS, seconds=1.0, cpu_seconds=2, memory_bytes=256 << 20, processes=16)
SUM = ContestProblem(
    "sum", "codecontests", (ContestTest("2 3\n", "5\n"), ContestTest("40 2\n", "42\n")), (), (), statement="Add."
)
TWICE = ContestProblem(
    "twice", "apps", (ContestTest("[1, 2]", "[2, 4]"), ContestTest("[7]", "[14, 0]")), (), None, "twice"
)
CALL = Problem("add", "def f(a, b):\n    return [a + b]\n", "2, 3", "[5]")
PATCHES = "import builtins, sys, os, ast, json\n"


def answer(code):
    return f"I think.\n</think>\nHere it is.\n```python\n{code}\n```\n"


def program(code, contest=SUM, limits=LIMITS):
    return judge_program(contest, answer(code), limits=limits)


@pytest.mark.parametrize(
    ("contest", "code"),
    [
        (SUM, "a, b = map(int, input().split())\nprint(a + b)"),
        (SUM, "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()"),
        (TWICE, "def twice(xs: List[int]):\n    return tuple(2 * x for x in xs) + (0,) * (len(xs) == 1)"),
        (TWICE, "class Solution:\n    def twice(self, xs):\n        return [2 * x for x in xs] + [0] * (len(xs) == 1)"),
    ],
)
def test_right_programs_are_rewarded(contest, code):
    reward = program(code, contest, DEFAULT_LIMITS)
    assert (reward.value, reward.solved) == (1.0, True), reward.reasons


@pytest.mark.parametrize(
    "code",
    [
        "print(5)",
        "print('5\\n42')\nprint('passed all tests')",
        "import os\nprint(5, flush=True)\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "a, b = map(int, input().split())\nprint(a + b)\nraise SystemExit(1)",
        "a, b = map(int, input().split())\nprint(a + b, flush=True)\nimport os\nos.kill(os.getpid(), 9)",
        "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\nprint(Yes('yes'))",
        PATCHES + "builtins.print('5')\nos.write(3, b'A5')\nos.write(4, b'(0, None, None, 0.1)')",
        PATCHES
        + "for fd in range(3, 64):\n    try: os.write(fd, b'0\\n(0, None, None, 0.1)\\n')\n    except OSError: pass",
        "import sys, gc\nprint([o for o in gc.get_objects() if 'expected' in str(o)[:1000]][:3])",
        "import glob\nprint(*[open(p).read() for p in glob.glob('/tmp/**/*.jsonl', recursive=True)])",
        "import os\nfor pid in os.listdir('/proc'):\n    if pid.isdigit(): print(open(f'/proc/{pid}/cmdline').read())",
    ],
)
def test_forged_programs_get_nothing(code, tmp_path):
    reward = program(code)
    assert (reward.value, reward.solved) == (-1.0, False), reward.reasons


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "limit"),
        ("import time\ntime.sleep(100)", "limit: seconds"),
        ("import os\nwhile True: os.fork()", "limit"),
        ("x = bytearray(1 << 40)", "exit code 1"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", ""),
        ("while True: print('5')", "limit"),
        ("import os\nos.kill(os.getpid(), 11)", "signal 11"),
        ("import os, signal\nos.kill(-1, signal.SIGKILL)\nos.kill(1, 9)\nos.kill(os.getppid(), 9)", ""),
        ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()\nf()", ""),
        ("open('big', 'wb').write(b'0' * (1 << 30))", ""),
    ],
)
def test_hanging_crashing_and_leaking_programs_are_wrong(code, reason):
    # A program that ends by itself reaches its end also on a slow machine.
    reward = program(code, limits=LIMITS if reason.startswith("limit") else dataclasses.replace(LIMITS, seconds=20.0))
    assert not reward.solved and reason in reward.reasons[0]


def test_nothing_is_left_of_a_leaking_program():
    before = {path.name for path in Path("/tmp").glob("cwm-*")}, os.listdir("/dev/shm")
    children = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\nopen('/dev/shm/left', 'w')\n"
    )
    assert program(children + "print(sum(map(int, input().split())))", limits=DEFAULT_LIMITS).solved
    assert ({path.name for path in Path("/tmp").glob("cwm-*")}, os.listdir("/dev/shm")) == before


def test_tests_of_this_host_cannot_be_read(tmp_path):
    hidden = tmp_path / "tests.jsonl"
    hidden.write_text(json.dumps({"output": ["5", "42"]}))
    reads = f"import json\na = input()\nprint(dict([('2 3', 5), ('40 2', 42)])[a] if open({str(hidden)!r}) else 0)"
    assert not program(reads).solved


@pytest.mark.parametrize(
    "code",
    [
        "class Yes:\n    def __eq__(self, other): return True\n    def __repr__(self): return 'Yes()'\n"
        "def twice(xs): return Yes()",
        "class Yes(list):\n    def __eq__(self, other): return True\ndef twice(xs): return Yes([9])",
        "def twice(xs):\n    import os\n    for fd in range(3, 64):\n        try: os.write(fd, b'A[2, 4]')\n"
        "        except OSError: pass\n    os._exit(0)",
        "def twice(xs):\n    raise SystemExit(0)",
        "def twice(xs):\n    return __import__('sys').modules['__main__']",
        "import json, ast, builtins\nast.literal_eval = json.loads = builtins.repr = lambda *a, **k: '[2, 4]'\n"
        "def twice(xs): return [2, 4]",
        "def twice(xs):\n    while True: pass",
        "def twice(xs): return [2] * 10**6",
        "def twice(xs): return eval('[' * 150 + ']' * 150)",
        "class Deep:\n    def __repr__(self): return '(' * 10**5\ndef twice(xs): return Deep()",
        "def other(xs): return [2, 4]",
    ],
)
def test_forged_functions_get_nothing(code):
    assert not program(code, TWICE).solved


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint(sum(map(int, input().split())))\n```",  # no end of reasoning
        "</think></think>\n```\nprint(sum(map(int, input().split())))\n```",
        "</think>\nprint(sum(map(int, input().split())))",
        "</think>\n```\nprint(0)\n```\n```\nprint(sum(map(int, input().split())))\n```",
        "</think>\n```\nprint(sum(map(int, input().split())))\n",
        "</think>\n```\nprint(sum(map(int, input().split()))\n```",  # does not compile
        "</think>\n```\n\0\n```",
        "</think>\n```\n" + "(" * 5000 + "\n```",
        "</think>\n```\n" + "#" * 60_000 + "\n```",
        "",
    ],
)
def test_answers_out_of_format_get_nothing(text):
    reward = judge_program(SUM, text)
    assert reward.value == -1.0 and reward.reasons[0].startswith("format: ")


@pytest.mark.parametrize("value", ["[5]", "f(2, 3) == [5]", " [5 ,] ", "assert f(2, 3) == [5]"])
def test_right_outputs_are_rewarded(value):
    assert judge_output(CALL, f"<think>\n2 + 3\n</think>\n[ANSWER]{value}[/ANSWER]").solved
    assert judge_output(CALL, f"[ANSWER]{value}[/ANSWER]", style="chat").solved


@pytest.mark.parametrize(
    "value",
    [
        "[6]", "[5.0]", "(5,)", "[True]", "5", "[2 + 3]", "f(2, 3)", "[5] or [6]", "[5][/ANSWER][ANSWER][6]", "", "_",
        "type('Y', (), {'__eq__': lambda *a: True})()", "__import__('os')._exit(0)", "[5", "[" * 10**5, "9" * 10**5,
        "'\\" * 10**5,
        "\0", "", "# [5]", "[5] if True else [6]", "output", "problem.output",
    ],
)  # fmt: skip
def test_forged_outputs_get_nothing(value):
    for style, text in (("reasoning", f"</think>[ANSWER]{value}[/ANSWER]"), ("completion", f"{value}\n")):
        assert not judge_output(CALL, text, style=style).solved, (style, value)


@pytest.mark.parametrize(
    ("arguments", "solved"),
    [
        ("2, 3", True), ("a=1, b=4", True), ("f(0, 5)", True), ("f(b=5, a=0) == [5]", True),
        ("2, 4", False), ("2", False), ("*[2, 3]", True), ("5, False", True), ("", False), (")", False),
        ("type('Y', (), {'__add__': lambda *a: 5})(), 3", False),
        ("type('Y', (int,), {'__add__': lambda *a: 5, '__repr__': lambda s: 'Y()'})(1), 3", False),
        ("(f := lambda *a: [5]) and 1, 2", False),
        ("globals().update(f=lambda *a: [5]) or 1, 2", False),
        ("__import__('os')._exit(0), 3", False),
        ("__import__('time').sleep(100), 3", False),
        ("[__import__('os').write(fd, b'A[5]') for fd in range(3, 9)], 3", False),
        ("2, 3) or [5] or f(1, 1", False),
    ],
)  # fmt: skip
def test_inputs(arguments, solved):
    text = f"</think>[ANSWER]{arguments}[/ANSWER]"
    reward = judge_input(CALL, text, limits=DEFAULT_LIMITS if solved else LIMITS)
    assert reward.solved == solved and reward.value == (1.0 if solved else -1.0), reward.reasons


@pytest.mark.torch
def test_tasks_ask_and_score_in_tokens(tmp_path):
    tokenizer = cwm.Tokenizer.train(
        ["def f(a):\n    return a\n"], 300, special_tokens=list(dict.fromkeys([*TRACE_TOKENS, *CHAT_TOKENS]))
    )
    eot = tokenizer.special_tokens["<|eot_id|>"]

    def tokens(text):
        return [*tokenizer.encode(text).tolist(), eot]

    output, inputs, coding = OutputTask(tokenizer), InputTask(tokenizer), CodingTask(tokenizer)
    assert "def f(a, b)" in tokenizer.decode(output.prompt(CALL)) and "f(2, 3)" in tokenizer.decode(output.prompt(CALL))
    assert output.score(CALL, tokens("</think>[ANSWER][5][/ANSWER]")).solved
    assert not output.score(CALL, tokens("</think>[ANSWER][5][/ANSWER]")[:-1]).solved  # cut
    assert not output.score(CALL, [tokenizer.vocab_size + 5, eot]).solved and not output.score(CALL, []).solved
    assert "[5]" in tokenizer.decode(inputs.prompt(CALL)) and "f(2, 3)" not in tokenizer.decode(inputs.prompt(CALL))
    assert inputs.score(CALL, tokens("</think>[ANSWER]f(1, 4)[/ANSWER]")).solved
    prompt = tokenizer.decode(coding.prompt(SUM))
    assert "Add." in prompt and "standard input" in prompt and "42" not in prompt and prompt.endswith("<think>\n")
    assert coding.score(SUM, tokens(answer("print(sum(map(int, input().split())))"))).solved
    short = OutputTask(tokenizer, style="completion")
    newline = tokenizer.encode("\n")[0]
    assert newline in short.stop_tokens and short.score(CALL, tokens(" [5]\n")[:-1]).solved
    row = {"name": "a", "description": "Say.", "public_tests": {"input": [""], "output": ["x"]}}
    (tmp_path / "contests.jsonl").write_text(json.dumps(row))
    assert "Say." in tokenizer.decode(coding.prompt(next(read_contests(tmp_path / "contests.jsonl"))))


def test_items_without_truth_are_refused():
    with pytest.raises(ValueError, match="has no tests"):
        judge_program(dataclasses.replace(SUM, tests=()), answer("1"))
    with pytest.raises(ValueError, match="has no output"):
        judge_output(dataclasses.replace(CALL, output=None), "")
    with pytest.raises(ValueError, match="has no output"):
        judge_input(dataclasses.replace(CALL, output=None), "")
