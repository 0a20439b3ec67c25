"""Evaluation: files of problems, confidence intervals, what answers state, files of results. Nothing is run."""

import itertools
import json

import numpy as np
import pytest
from cwm_core.evaluation import Problem, Result, read_problems
from cwm_core.evaluation.answers import fill, load_template
from cwm_core.evaluation.reading import answer_of_chat, arguments_of_answer, output_of_answer
from cwm_core.evaluation.report import measure
from cwm_core.evaluation.results import run_batches
from cwm_core.evaluation.statistics import bootstrap_interval, pass_at_k, wilson_interval
from evaluation_problems import PROBLEMS, write_problems
from hypothesis import given
from hypothesis import strategies as st

# ---- problems


def test_problems_come_back_as_written(tmp_path):
    path = write_problems(tmp_path / "p.jsonl")
    assert read_problems(path) == PROBLEMS
    assert read_problems(path, limit=3) == PROBLEMS[:3]
    assert PROBLEMS[0].call == "f(2, 3)"


def test_optional_fields_may_be_missing(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"code": "c", "input": "", "more": 1}\n\n{"code": "c", "input": "1", "id": 7, "ends": false}\n')
    assert read_problems(path, required=()) == [Problem("1", "c", ""), Problem("7", "c", "1", ends=False)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"code": "c", "input": ""}', "line 1: 'output' is missing"),
        ('{"input": "", "output": ""}', "line 1: 'code' is missing"),
        ('{"code": "c", "input": [1], "output": ""}', r"line 1: 'input' must be a string, got \[1\]"),
        ('\n{"code": "c", "input": "", "output": "", "ends": 1}', "line 2: 'ends' must be true or false, got 1"),
        ('{"code": "c", "input": "", "output": "", "id": true}', "line 1: 'id' must be a string, got true"),
        (
            '{"code": "c", "input": "", "output": "", "id": "2"}\n{"code": "c", "input": "", "output": ""}',
            "used in line 1",
        ),
        ("[1]", "line 1: not a JSON object"),
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("\n \n", "the file has no problems"),
    ],
)
def test_bad_problems_are_named(tmp_path, lines, message):
    path = tmp_path / "p.jsonl"
    path.write_text(lines)
    with pytest.raises(ValueError, match=r"p\.jsonl.*" + message):
        read_problems(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'{"code": "\xff"}')
    with pytest.raises(ValueError, match="line 1: not JSON"):
        read_problems(path)


# ---- statistics


@given(st.integers(1, 300), st.data())
def test_wilson_interval_holds_the_shares_that_are_not_rejected(n, data):
    successes = data.draw(st.integers(0, n))
    low, high = wilson_interval(successes, n)
    share = successes / n
    assert 0 <= low <= share <= high <= 1
    # The interval is all p that the score test does not reject: at its ends the statistic is the critical value.
    for p in (low, high):
        if 0 < p < 1:
            assert abs(share - p) == pytest.approx(1.959964 * (p * (1 - p) / n) ** 0.5, rel=1e-5)


def test_wilson_interval_covers_as_often_as_it_says():
    drawn = np.random.default_rng(0).binomial(100, 0.3, size=4000)
    covered = [low <= 0.3 <= high for low, high in (wilson_interval(int(k), 100) for k in drawn)]
    assert 0.93 < np.mean(covered) < 0.97


def test_bootstrap_interval_is_that_of_a_mean():
    values = np.random.default_rng(1).normal(5, 2, size=400)
    low, high = bootstrap_interval([values], seed=3)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval([values], seed=3) == (low, high) != bootstrap_interval([values], seed=4)


def test_bootstrap_of_groups_weighs_them_equally():
    rng = np.random.default_rng(2)
    many, few = rng.normal(0, 1, 900), rng.normal(10, 1, 100)
    low, high = bootstrap_interval([many, few])
    half = 1.96 * (many.var() / 900 + few.var() / 100) ** 0.5 / 2
    middle = (many.mean() + few.mean()) / 2
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=0.01)


@given(st.lists(st.booleans(), min_size=1, max_size=9), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(right, data):
    k = data.draw(st.integers(1, len(right)))
    draws = list(itertools.combinations(right, k))
    assert pass_at_k(len(right), sum(right), k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_statistics_refuse_nonsense():
    for call in (lambda: wilson_interval(3, 2), lambda: wilson_interval(0, 0), lambda: pass_at_k(2, 1, 3)):
        with pytest.raises(ValueError, match="of"):
            call()
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([[1.0], []])


def test_a_measure_ignores_missing_values():
    share = measure("a", [1.0, None, 0.0], share=True, seed=0)
    assert (share.value, share.n) == (0.5, 2) and (share.low, share.high) == wilson_interval(1, 2)
    assert measure("a", [None], share=False, seed=0).value is None


# ---- answers


def test_templates_are_filled_once():
    assert fill("{a} {b} {c} {{a}}", a="{b}", b=2) == "{b} 2 {c} {{b}}"


def test_templates_are_checked(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("What is {input}?")
    with pytest.raises(ValueError, match=r"t\.txt: the template lacks the field \{code\}"):
        load_template("", ("code", "input"), path)


def test_our_templates_end_where_the_model_begins():
    for name, end in (("output_completion", "=="), ("input_completion", "assert"), ("termination", "end?")):
        assert load_template(name, ("code",)).endswith(end)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("[ANSWER]1[/ANSWER]", False, "1"),
        ("first [ANSWER]1[/ANSWER] no,\n[ANSWER]\n[2,\n 3]\n[/ANSWER] so", False, "[2,\n 3]"),
        ("It is\n`[1]`\n", False, "[1]"),
        ("[ANSWER]0[/ANSWER] hm\n</think>\n[ANSWER]1[/ANSWER]", True, "1"),
        ("[ANSWER]0[/ANSWER] hm<|reasoning_thinking_end|>7", True, "7"),
        ("[ANSWER]0[/ANSWER] and I still think", True, None),
        ("", False, None),
        ("[ANSWER] [/ANSWER]", False, None),
    ],
)
def test_answers_of_chats(text, reasoning, answer):
    assert answer_of_chat(text, reasoning=reasoning) == answer


@pytest.mark.parametrize(
    ("answer", "output", "arguments"),
    [
        ("assert f([1], 'a)') == {'x': 2}", "{'x': 2}", "[1], 'a)'"),
        ("f(é=1) == 'é'", "'é'", "é=1"),
        ("f(1)", "f(1)", "1"),
        ("[1, 2]", "[1, 2]", "[1, 2]"),
        ("1, 2", "1, 2", "1, 2"),
        ("1 == 1", "1 == 1", "1 == 1"),
        ("g(1) == 2", "2", "g(1) == 2"),
        ("f(", "f(", "f("),
        ("((" * 10_000, "((" * 10_000, "((" * 10_000),
    ],
)
def test_values_that_answers_state(answer, output, arguments):
    assert output_of_answer(answer) == output
    assert arguments_of_answer(answer) == arguments


@given(st.text(max_size=40))
def test_reading_answers_never_raises(text):
    output_of_answer(text)
    arguments_of_answer(text)
    answer_of_chat(text, reasoning=False)


# ---- results


def draw(batch, seed):
    numbers = np.random.default_rng(seed).random(len(batch))
    return [Result(problem.id, {"drawn": float(number)}) for problem, number in zip(batch, numbers, strict=True)]


@given(st.integers(0, 12), st.integers(0, 60), st.integers(1, 5))
def test_resumed_results_equal_uninterrupted_ones(tmp_path_factory, lines, torn, batch):
    folder = tmp_path_factory.mktemp("results")
    options = {"batch": batch, "seed": 5}
    whole, _ = run_batches("t", PROBLEMS, draw, {"a": 1}, **options)
    run_batches("t", PROBLEMS, draw, {"a": 1}, folder=folder, **options)
    path = folder / "results.jsonl"
    written = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(written[:lines]) + b"".join(written[lines:])[:torn])
    assert run_batches("t", PROBLEMS, draw, {"a": 1}, folder=folder, **options)[0] == whole
    assert path.read_bytes() == b"".join(written)


def test_an_exception_keeps_the_earlier_batches(tmp_path):
    done = []

    def interrupted(batch, seed):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(batch)
        return draw(batch, seed)

    with pytest.raises(KeyboardInterrupt):
        run_batches("t", PROBLEMS, interrupted, {}, folder=tmp_path, batch=3)
    assert len((tmp_path / "results.jsonl").read_bytes().splitlines()) == 6
    shown = []
    run_batches("t", PROBLEMS, draw, {}, folder=tmp_path, batch=3, progress=lambda *at: shown.append(at))
    assert shown == [(3, 12), (6, 12), (9, 12), (12, 12)]


def test_other_settings_are_refused(tmp_path):
    run_batches("t", PROBLEMS, draw, {"a": 1}, folder=tmp_path)
    for change in ({"seed": 1}, {"batch": 2}, {"settings": {"model": "m"}}):
        with pytest.raises(ValueError, match=f"holds results with {next(iter(change.get('settings', change)))} = "):
            run_batches("t", PROBLEMS, draw, {"a": 1}, folder=tmp_path, **change)
    with pytest.raises(ValueError, match="holds results with a = 1, not 2"):
        run_batches("t", PROBLEMS, draw, {"a": 2}, folder=tmp_path)
    with pytest.raises(ValueError, match="with dataset = "):
        run_batches("t", PROBLEMS[1:], draw, {"a": 1}, folder=tmp_path)


def test_damaged_results_are_refused(tmp_path):
    run_batches("t", PROBLEMS, draw, {}, folder=tmp_path)
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    for bad in ("{", "[]", json.dumps({"no": "id"})):
        (tmp_path / "results.jsonl").write_text("\n".join([lines[0], bad, *lines[1:]]) + "\n")
        with pytest.raises(ValueError, match=r"results\.jsonl, line 2: not a result"):
            run_batches("t", PROBLEMS, draw, {}, folder=tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match="without readable settings"):
        run_batches("t", PROBLEMS, draw, {}, folder=tmp_path)
