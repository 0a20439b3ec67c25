"""A process without the recorder decides whether a solution passes; other recordings are dropped, never "wrong"."""

import json

import pytest
from cwm_core import machines
from cwm_core.corpus.contests import accepts_output, accepts_value, read_contests, tolerance_of, units
from cwm_core.corpus.prelude import import_paths, with_prelude
from cwm_core.corpus.recording import CorpusSettings, KeptSample, SampleRecorder
from llama3 import rank_path

pytest.importorskip("rensa")
pytest.importorskip("license_expression")
pytest.importorskip("detect_secrets")

SANDBOX = "process" if machines.bubblewrap_refusal() else "bubblewrap"
INPUT, OUTPUT = "2\n3\n4\n", "7\n"
READS = "import sys, os\nn, *xs = map(int, sys.stdin.read().split())\ntotal = 0\nfor x in xs:\n    total += x\n"


@pytest.fixture(scope="module")
def recording():
    recording = SampleRecorder(CorpusSettings(str(rank_path()), sandbox=SANDBOX, allow_effects=frozenset({"input"})))
    yield recording
    recording.close()


def judged(recording, path, right, tests=((INPUT, OUTPUT),), function=None, wrong=()):
    """Return whether solutions pass, or why they are dropped."""
    inputs, outputs = map(list, zip(*tests, strict=True))
    if function is not None:
        row = {"input_output": {"fn_name": function, "inputs": inputs, "outputs": outputs}, "solutions": list(right)}
    else:
        both = {"solutions": right, "incorrect_solutions": wrong}
        row = {name: {"language": [3] * len(codes), "solution": list(codes)} for name, codes in both.items()}
        row |= {"name": "p", "public_tests": {"input": inputs, "output": outputs}}
        if not wrong:
            row["incorrect_solutions"] = {"language": [3] * 9, "solution": [f"print({n} - 100)" for n in range(9)]}
    path.write_text(json.dumps(row))
    found = [u for u in units(read_contests(path), license="MIT", solutions=18, inputs=9)]
    chosen = [u for u in found if u.provenance["label"] == ("wrong" if wrong else "right")]
    return [r.metadata["passes"] if isinstance(r, KeptSample) else r.drop.reason for r in recording.record(chosen)]


FOLLOWED = {
    "print": READS + "print(total)",
    "open(0)": "xs = open(0).read().split()\ntotal = 0\nfor x in xs[1:]:\n    total += int(x)\nprint(total)",
    "os.read": "import os\nxs = os.read(0, 1 << 16).split()\ntotal = sum(map(int, xs[1:]))\nprint(total)",
    "sys.stdout.buffer": READS + "sys.stdout.buffer.write(b'%d' % total)",
    "List": "def add(xs: List[int]) -> int:\n    return sum(xs)\ninput()\nprint(add([int(input()), int(input())]))",
    "future": "from __future__ import annotations\nd = deque(range(2))\nd.popleft()\n"
    + READS[READS.index("n,") :].replace("sys.", "sys.")
    + "print(total)",
}
BELOW = {
    "os.write": READS + "os.write(1, b'%d' % total)",
    "fileno": READS + "os.write(sys.stdout.fileno(), b'%d' % total)",
    "open(1)": READS + "with open(1, 'w') as out:\n    out.write(str(total))",
    "subprocess": READS + "import subprocess\nsubprocess.run(['echo', str(total)])",
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_right_solutions_pass_however_they_read(recording, tmp_path, name):
    assert judged(recording, tmp_path / "p.jsonl", [FOLLOWED[name]]) == [True]


@pytest.mark.parametrize("name", BELOW)
def test_output_that_the_recorder_misses_is_never_labeled_wrong(recording, tmp_path, name):
    [outcome] = judged(recording, tmp_path / "p.jsonl", [BELOW[name]])
    assert outcome in (True, "differs without the recorder", "effect: process")


def test_wrong_solutions_fail(recording, tmp_path):
    wrong = [READS + "print(total + 1)", READS + "print(total)\nx = 1 / 0", READS + "print(total)\nsys.exit(3)"]
    right = [READS + f"y = {n}\nprint(total)" for n in range(3)]
    assert judged(recording, tmp_path / "p.jsonl", right, wrong=wrong) == [False, False, False]
    no_import = ["n = input()\nx = 1\ny = 2\nprint(sqrt(49))"]
    assert judged(recording, tmp_path / "p.jsonl", right, wrong=no_import) == [False]


def test_other_packages(recording, tmp_path):
    pytest.importorskip("numpy")
    code = (
        "import numpy as np\nn, *xs = open(0).read().split()\ntotal = int(np.sum([int(x) for x in xs]))\nprint(total)"
    )
    missing = "n = 1\nimport not_there_at_all\nprint(n)\nprint(n)"
    assert judged(recording, tmp_path / "p.jsonl", [code, missing]) == [True, "not installed"]


def test_numbers_with_decimals_may_differ_slightly(recording, tmp_path):
    thirds = "n = int(input())\nx = n / 3\ny = x\nprint('%.7f' % x)"
    assert judged(recording, tmp_path / "p.jsonl", [thirds], [("1", "0.333333333333"), ("3", "1")]) == [True, True]
    close = "n = int(input())\nx = n + 1\ny = x\nprint(x)"
    assert judged(recording, tmp_path / "p.jsonl", [close], [("1000000", "1000000")]) == [False]


CALLS = {
    "List": (
        "class Solution:\n    def add(self, xs: List[int]) -> int:\n        s = 0\n        return s + sum(xs)\n",
        True,
    ),
    "long": ("def add(xs):\n    text = 'x' * 3000\n    y = len(text)\n    return 7 + y - 3000 if xs else text\n", True),
    "float": ("def add(xs):\n    y = 0.1\n    z = 0.2\n    return y + z + 6.7\n", True),
    "wrong": ("def add(xs):\n    y = 1\n    z = 2\n    return y + z\n", False),
    "raises": ("def add(xs):\n    y = 1\n    z = 2\n    return y / 0\n", False),
    "object": ("def add(xs):\n    y = 1\n    z = 2\n    return range(y, z)\n", "answer cannot be compared"),
}


@pytest.mark.parametrize("name", CALLS)
def test_functions(recording, tmp_path, name):
    code, outcome = CALLS[name]
    tests = [([[3, 4]], 7.0)] if name == "float" else [([[3, 4]], 7)]
    assert judged(recording, tmp_path / "p.jsonl", [code], tests, function="add") == [outcome]


def test_long_values_are_compared_as_a_whole(recording, tmp_path):
    code = "def f(n):\n    x = list(range(n))\n    y = x\n    return y\n"
    assert judged(recording, tmp_path / "p.jsonl", [code], [([900], list(range(900)))], function="f") == [True]


def test_prelude():
    assert with_prelude("x = 1\n") == "x = 1\n"
    code = '"""What it does."""\nfrom __future__ import annotations\nx = List[int], [gcd(4, 6)]\n'
    lines = with_prelude(code).splitlines()
    assert lines[2:4] == ["from math import gcd", "from typing import List"] and lines[:2] == code.splitlines()[:2]
    own = "from typing import *\ndef gcd(a, b):\n    return a\ndef f(deque):\n    global heappop\n    heappop = deque\n"
    assert with_prelude(own + "gcd(1, 2)\nheappop\n") == own + "gcd(1, 2)\nheappop\n"
    names: dict = {}
    exec(with_prelude("def f(x: Optional[int]):\n    return np.int64(math.inf > 1), Counter('a'), reduce\n"), names)
    assert names["f"](1)[:2] == (1, {"a": 1})
    assert import_paths("import os, json\nfrom collections import deque\n") == ()
    assert len(import_paths("def f():\n    import numpy.linalg\n")) == 1


def test_comparing():
    assert accepts_output("a  1\n", "a 1") and not accepts_output("a 1 2", "a 1")
    assert not accepts_output("1000001", "1000000", 1e-5) and accepts_output("1000000.1", "1000000", 1e-5)
    assert not accepts_output("yes", "no", 1e-5)
    assert accepts_value("(1, [2.0000001])", "[1, [2]]", 1e-5) and not accepts_value("[1, 3]", "[1, 2]", 1e-5)
    assert accepts_value("{'a': 0.1}", '{"a": 0.10000001}', 1e-5) and not accepts_value("True", "1.0", 1e-5)
    assert accepts_value("<object>", "1") is None
    assert tolerance_of(["YES", "12 13"]) is None and tolerance_of(["1", "[0.5, 1]"]) == tolerance_of(["1e-7"]) == 1e-5
