"""Files of contest problems, valid and damaged, as units; and judging their recordings."""

import json
import re

import cwm_core as cwm
import pytest
from cwm_core.corpus.contests import judge, judge_digest, read_contests, units
from cwm_core.corpus.sandbox import RecordingSandbox, Run
from cwm_core.machines import bubblewrap_refusal
from hypothesis import given
from hypothesis import strategies as st

RIGHT = [f"a, b = map(int, input().split())\nprint(a + b + {n} - {n})\n" for n in range(5)]
WRONG = [f"a, b = map(int, input().split())\nprint(a - b + {n})\n" for n in range(3)]
PYTHON2 = "print raw_input()"
CODE_CONTESTS = {
    "name": "1_A. Sum",
    "difficulty": 7,
    "public_tests": {"input": ["1 2\n"], "output": ["3\n"]},
    "private_tests": {"input": ["10 20\n", "5 5\n"], "output": ["30\n", "10\n"]},
    "generated_tests": {"input": ["1 " + "0" * 5000, "7 8\n"], "output": ["1\n", "15\n"]},
    "solutions": {"language": [3] * 5 + [2, 1], "solution": [*RIGHT, "int main() {}", PYTHON2]},
    "incorrect_solutions": {"language": [3, 3, 3, 3], "solution": [*WRONG, PYTHON2]},
}
AS_OBJECTS = CODE_CONTESTS | {
    "name": "1_B. Objects",
    "public_tests": [{"input": "1 2\n", "output": "3\n"}],
    "solutions": [{"language": "PYTHON3", "solution": code} for code in RIGHT],
}
APPS = {
    "problem_id": 17,
    "question": "Print the sum",
    "solutions": json.dumps([*RIGHT, PYTHON2]),
    "input_output": json.dumps({"inputs": ["1 2\n", ["3 4", ""]], "outputs": ["3\n", ["7"]]}),
    "difficulty": "introductory",
    "url": "https://example.org/17",
}
METHOD = "class Solution:\n    def twice(self, xs, y=1):\n        return tuple(x * 2 for x in xs)\n"
CALLED = {
    "question": "Double",
    "solutions": json.dumps([METHOD, "def twice(xs, y):\n    return [x + x for x in xs]\n"]),
    "input_output": {"fn_name": "twice", "inputs": [[[1, 2], "a"], [[], 3]], "outputs": [[2, 4], [[]]]},
}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


@pytest.fixture
def contests(tmp_path):
    return list(read_contests(write(tmp_path / "all.jsonl", CODE_CONTESTS, AS_OBJECTS, "", APPS, CALLED)))


def test_both_forms_are_read(contests):
    first, objects, apps, called = contests
    assert (first.name, first.source, first.difficulty) == ("1_A. Sum", "codecontests", 7)
    assert first.right == objects.right == tuple(RIGHT) and first.wrong == tuple(WRONG)
    assert [test.output for test in first.tests] == ["3\n", "30\n", "10\n", "1\n", "15\n"]
    assert (apps.name, apps.source, apps.url) == ("apps/17", "apps", "https://example.org/17")
    assert apps.right == tuple(RIGHT) and apps.wrong is None
    assert apps.tests == (("1 2\n", "3\n"), ("3 4\n", "7"))
    assert called.function == "twice" and called.tests == (("[1, 2], 'a'", "[2, 4]"), ("[], 3", "[[]]"))
    assert called.name == "apps/5"


def test_right_and_wrong_solutions_are_balanced_and_seeded(contests):
    drawn = [list(units(contests, license="CC-BY-4.0", seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for found in drawn:
        assert len({unit.id for unit in found}) == len(found)
        labels = [(unit.provenance["problem"], unit.provenance["label"]) for unit in found]
        assert [labels.count(("1_A. Sum", label)) for label in ("right", "wrong")] == [2, 2]
        assert [labels.count(("apps/17", label)) for label in ("right", "wrong")] == [4, 0]
    sizes = [max(map(len, unit.inputs)) for unit in drawn[0] if unit.inputs]
    assert max(sizes) < 1000
    few = list(units(contests[:1], license="MIT", solutions=100))
    assert len(few) == 6
    assert all(json.dumps(dict(unit.provenance)) for unit in few)
    # Neither the order nor the other problems matter.
    assert set(units_ids(contests)) == set(units_ids(contests[::-1]))


def units_ids(contests):
    return [(unit.id, unit.inputs, unit.calls) for unit in units(contests, license="MIT")]


def test_calls_of_functions_and_methods(contests):
    found = {unit.id.split("/")[-1]: unit for unit in units(contests[3:], license="MIT")}
    assert set(found["0"].calls) == {"Solution().twice([1, 2], 'a')", "Solution().twice([], 3)"}
    assert set(found["1"].calls) == {"twice([1, 2], 'a')", "twice([], 3)"}
    for unit in found.values():
        for call, expected in zip(unit.calls, unit.provenance["expected"], strict=True):
            assert judge_digest(cwm.record_source(unit.code, call), expected, call=True)


def test_programs_are_recorded_and_judged(contests):
    found = list(units(contests, license="MIT"))
    runs = [(unit, n) for unit in found for n in range(len(unit.inputs))]
    orders = [Run(unit.code, stdin=unit.inputs[n], options={"capture_output": True}) for unit, n in runs]
    with RecordingSandbox(sandbox="process" if bubblewrap_refusal() else "bubblewrap") as worker:
        answers = list(worker.run(orders))
    assert len(runs) > 10
    for (unit, n), answer in zip(runs, answers, strict=True):
        passes = judge_digest(answer.trace, unit.provenance["expected"][n])
        # A wrong solution may be right on some input.
        a, b = map(int, unit.inputs[n].split())
        assert passes == (answer.trace.output == f"{a + b}\n")
        assert passes or unit.provenance["label"] == "wrong"


def printed(code):
    recorder = cwm.Recorder(scope=["x"], capture_output=True)
    return recorder.record(exec, compile(code, "x", "exec"), {})


def test_rules_of_judging():
    assert judge(printed("print('a  b')\nprint(1)"), "a b 1\n\n")
    assert not judge(printed("print('a b')"), "a b 1")
    assert not judge(printed("print(1)\n1/0"), "1")
    assert judge(printed("print(1)\nraise SystemExit"), "1")
    assert judge(printed("print(1)\nimport sys; sys.exit(0)"), "1")
    assert not judge(printed("print(1)\nraise SystemExit(1)"), "1")
    assert not judge(printed("print(0.3333334)"), "0.3333333")
    assert judge(printed("print(0.3333334, 'x')"), "0.3333333 x", tolerance=1e-6)
    assert judge(printed("print(2e9 + 1)"), "2e9", tolerance=1e-6)
    for other in ("nan", "x", "", "0.3333333 x", "inf"):
        assert not judge(printed("print(0.5)"), other, tolerance=1e-6)
    assert not judge(cwm.record(printed, ""), "")  # its output was not captured
    cut = cwm.Recorder(max_frames=2).record_source("def f():\n    x = 1\n    return x\n", "f()")
    assert not judge(cut, "1", call=True)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=8,
    )
)
def test_values_survive_json(value):
    assert judge(cwm.Recorder(max_value_chars=1 << 20).record(lambda: value), json.dumps(value), call=True)


BAD = {
    "[1]": "not a JSON object, but a list",
    "{": "Expecting property name",
    "[" * 100_000: "nested too deeply",
    '{"name": "x"}': "expected a problem of CodeContests",
    json.dumps(CODE_CONTESTS | {"name": 3}): "'name': expected a string, got a number",
    json.dumps(
        CODE_CONTESTS | {"public_tests": "x"}
    ): "'public_tests': expected an object of lists or a list of objects",
    json.dumps(CODE_CONTESTS | {"public_tests": {"input": ["1"], "output": []}}): "of the same length",
    json.dumps(CODE_CONTESTS | {"public_tests": [{"input": "1"}]}): "unexpected 'output' number 0: missing",
    json.dumps(
        CODE_CONTESTS | {"solutions": {"language": [3], "solution": [[]]}}
    ): "unexpected 'solution' number 0: a list",
    json.dumps(APPS | {"solutions": "{"}): "'solutions': not JSON",
    json.dumps(APPS | {"solutions": "3"}): "'solutions': expected a list, got a number",
    json.dumps(APPS | {"solutions": "[3]"}): "'solutions': expected strings",
    json.dumps(APPS | {"input_output": {"inputs": ["1"]}}): "of the same length",
    json.dumps(APPS | {"input_output": {"inputs": [1], "outputs": ["1"]}}): "number 0: expected strings",
    json.dumps(
        CALLED | {"input_output": {"fn_name": "f(", "inputs": [], "outputs": []}}
    ): "'fn_name': expected an identifier",
    json.dumps(CALLED | {"input_output": {"fn_name": "f", "inputs": [1], "outputs": [1]}}): "expected a list",
}


@pytest.mark.parametrize("line", BAD, ids=lambda line: line[:40])
def test_bad_lines_are_named(tmp_path, line):
    path = write(tmp_path / "bad.jsonl", APPS, "", line)
    rows = read_contests(path)
    next(rows)
    with pytest.raises(ValueError, match=rf"bad\.jsonl, line 3: .*{re.escape(BAD[line])}"):
        next(rows)


def test_unusual_problems_are_accepted(tmp_path, monkeypatch):
    huge = '{"inputs": [[%s], [1], [NaN]], "outputs": [1, 2, 3], "fn_name": "f"}' % ("9" * 5000)
    odd = [
        APPS | {"input_output": "", "solutions": ""},
        APPS | {"input_output": huge, "solutions": ["def f(x):\n    return x + 1\n", "\0", "\ud800", "(" * 300]},
    ]
    contests = list(read_contests(write(tmp_path / "odd.jsonl", *odd)))
    assert contests[0].tests == contests[0].right == ()
    assert contests[1].tests == (("1", "2"),) and len(contests[1].right) == 1
    assert [unit.id for unit in units(contests * 2, license="MIT")] == ["apps/17#2/right/0", "apps/17#4/right/0"]
    monkeypatch.setattr("cwm_core.corpus.contests.MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="line 1: more than 100 bytes"):
        next(read_contests(tmp_path / "odd.jsonl"))
