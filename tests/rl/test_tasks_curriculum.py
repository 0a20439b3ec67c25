"""Curricula: shares, windows, switches, and exact resumption, on random reports."""

import json

import pytest
from cwm_core.rl.tasks import WINDOW, Curriculum, Stage
from hypothesis import given
from hypothesis import strategies as st

SIZES = {"output": 7, "coding": 3, "mathematics": 1}
STAGES = [
    Stage({"output": 4, "coding": 6}),
    Stage({"output": 1, "coding": 1, "mathematics": 2}, step=10, window=WINDOW),
    Stage({"output": 1}, step=30),
]


def play(curriculum, steps, rates):
    """Draws and reports, each report for the item just drawn."""
    drawn = []
    for step in steps:
        drawn.append(curriculum.draw(step))
        if (rate := rates[step % len(rates)]) is not None:
            curriculum.report(*drawn[-1], rate)
    return drawn


RATES = st.lists(st.none() | st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.7, 0.75, 1.0]), min_size=1, max_size=50)


@given(RATES, st.integers(0, 49), st.integers(0, 3))
def test_resumed_equals_uninterrupted(rates, at, seed):
    whole = Curriculum(SIZES, STAGES, seed=seed)
    expected = play(whole, range(50), rates)
    first, second = Curriculum(SIZES, STAGES, seed=seed), Curriculum(SIZES, STAGES, seed=seed)
    before = play(first, range(at), rates)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert before + play(second, range(at, 50), rates) == expected
    assert second.state_dict() == whole.state_dict()


@given(RATES, st.integers(1, 60))
def test_shares_are_exact_in_each_stage(rates, count):
    curriculum = Curriculum(SIZES, STAGES)
    for stage, step in zip(STAGES, (0, 10, 30), strict=True):
        names = [name for name, _ in play(curriculum, [step] * count, rates)]
        total = sum(stage.shares.values())
        for name in SIZES:
            assert abs(names.count(name) - count * stage.shares.get(name, 0) / total) <= 1


def test_each_pass_draws_each_item_once():
    curriculum = Curriculum({"a": 5}, [Stage({"a": 1})])
    passes = [[curriculum.draw(0)[1] for _ in range(5)] for _ in range(4)]
    assert all(sorted(one) == list(range(5)) for one in passes) and len(set(map(tuple, passes))) > 1


def test_the_window_leaves_out_what_is_too_easy_or_too_hard(caplog):
    curriculum = Curriculum({"a": 4}, [Stage({"a": 1}, window=WINDOW)])
    for index, rate in enumerate((0.05, 0.1, 0.7, 0.8)):
        curriculum.report("a", index, rate)
    assert {curriculum.draw(0)[1] for _ in range(20)} == {1, 2}
    curriculum.report("a", 1, 1.0)
    assert {curriculum.draw(0)[1] for _ in range(20)} == {2} and not caplog.records
    curriculum.report("a", 2, 0.0)
    assert {curriculum.draw(0)[1] for _ in range(20)} == {0, 1, 2, 3}
    assert "no item has a solve rate from 0.1 to 0.7" in caplog.text


@pytest.mark.parametrize(
    ("stages", "fault"),
    [
        ([], "begin at step 0"),
        ([Stage({"output": 1}, step=1)], "begin at step 0"),
        ([Stage({"output": 1}), Stage({"output": 1})], "increasing steps"),
        ([Stage({"other": 1})], "stage 0: there is no task 'other'"),
        ([Stage({"output": 0})], "must be positive, got 0"),
        ([Stage({})], "at least one task"),
        ([Stage({"output": 1}, window=(0.5, 0.1))], "window within 0 and 1"),
    ],
)
def test_impossible_curricula_are_refused(stages, fault):
    with pytest.raises(ValueError, match=fault):
        Curriculum(SIZES, stages)


def test_foreign_states_and_reports_are_refused():
    curriculum = Curriculum(SIZES, STAGES)
    with pytest.raises(ValueError, match="expected 1"):
        Curriculum(SIZES, STAGES, seed=1).load_state_dict(curriculum.state_dict())
    with pytest.raises(ValueError, match="has the sizes"):
        Curriculum(SIZES | {"output": 8}, STAGES).load_state_dict(curriculum.state_dict())
    for name, index, rate in (("other", 0, 0.5), ("output", 7, 0.5), ("output", 0, 1.5)):
        with pytest.raises(ValueError, match="has no item"):
            curriculum.report(name, index, rate)
