"""Test the conclusions of the benchmark tools on artificial runs with known results."""

import random
from itertools import product

import compare
import pytest
import report


def made_up(effects, *, rounds, noise, seed=0):
    """Return (base, current) of each round: benchmark i is effects[i] times as slow, under noise and drifting load."""
    rng = random.Random(seed)
    out = []
    for _ in range(rounds):
        load = rng.uniform(1, 3)
        base, current = ({n: load * rng.lognormvariate(0, noise) for n in effects} for _ in range(2))
        out.append((base, {n: seconds * effects[n] for n, seconds in current.items()}))
    return out


def test_sign_test_counts_tosses():
    for trials in range(1, 9):
        heads = [sum(tosses) for tosses in product((0, 1), repeat=trials)]
        for successes in range(trials + 1):
            assert compare.sign_test(successes, trials) == sum(h >= successes for h in heads) / 2**trials


def test_finds_what_changed_beyond_the_margin_under_drifting_load():
    effects = {"slow": 1.10, "fast": 0.90, "equal": 1.0, "hardly": 1.01}
    verdicts = compare.judge(made_up(effects, rounds=20, noise=0.015))
    assert {v.name: v.word for v in verdicts} == {"slow": "slower", "fast": "faster", "equal": "same", "hardly": "same"}
    assert all(abs(v.ratio - effects[v.name]) < 0.02 for v in verdicts)


def test_false_alarms_are_as_rare_as_promised():
    effects = {f"b{i}": 1.0 for i in range(10)}
    runs = [compare.judge(made_up(effects, rounds=15, noise=0.2, seed=s), margin=0) for s in range(300)]
    alarms = sum(any(v.word != "same" for v in run) for run in runs)
    assert alarms / len(runs) < compare.ALPHA


def test_one_dissenting_round_leaves_a_verdict_possible():
    rounds = [({"b": 1.0}, {"b": 1.5})] * (compare.rounds_needed(1) - 1)
    assert compare.judge([*rounds, ({"b": 1.0}, {"b": 0.9})])[0].word == "slower"


def test_too_few_rounds_are_an_error():
    with pytest.raises(ValueError, match="run more"):
        compare.judge(made_up({"a": 2.0, "b": 2.0}, rounds=4, noise=0.01))


def test_judges_only_what_both_sides_ran():
    rounds = [({"old": 1.0, "both": 1.0}, {"both": 1.0, "new": 1.0})] * 10
    assert [v.name for v in compare.judge(rounds)] == ["both"]


def benchmark(implementation, median, group="path", **counts):
    name = f"test_path[{implementation}]"
    return {
        "name": name,
        "fullname": f"benches/bench_path.py::{name}",
        "group": group,
        "stats": {"median": median, "iqr": 0},
        "extra_info": {"implementation": implementation} | counts,
    }


def test_report_gives_rates_and_ratios():
    ours, rival = benchmark("cwm_core", 0.001, bytes=10**6), benchmark("peer", 0.004, bytes=2 * 10**6)
    text = report.report([rival, ours])
    assert text.index("cwm_core") < text.index("peer")
    assert "1,000.00 MB/s" in text and "500.00 MB/s" in text and "ours 2.00x faster" in text
    events = report.report([benchmark("cwm_core", 0.5, events=1000), benchmark("settrace", 0.25)])
    assert "500 ms" in events and "2,000 events/s, 500,000.0 ns/event" in events and "ours 2.00x slower" in events
    assert "4,000 tokens/s" in report.report([benchmark("cwm_core", 0.25, group=None, tokens=1000, bytes=0)])


def test_report_names_rows_by_what_tells_them_apart():
    text = report.report([benchmark("cwm_core", 1.0), benchmark("cwm_core", 2.0)])
    assert text.count("test_path[cwm_core]") == 2 and "ours" not in text


def test_report_wants_one_of_ours_among_rivals():
    with pytest.raises(ValueError, match=r"'path'.*peer_a.*peer_b"):
        report.report([benchmark("peer_a", 1.0), benchmark("peer_b", 1.0)])
