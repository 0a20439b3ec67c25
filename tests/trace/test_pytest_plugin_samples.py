"""`pytest --cwm-record`: which calls of a function it keeps."""

from collections import Counter

import cwm_core as cwm
from cwm_core.trace.calls import CallSample, priority
from hypothesis import given
from hypothesis import strategies as st
from suites import SUITE, found, recorded, small


def test_samples_by_call_site(project, store):
    sites = Counter((m["function"], m["site"]) for _, m, _ in store.entries())
    line = SUITE[: SUITE.index("assert total(range(n)) < 3")].count("\n") + 1
    assert sites["pack.core:total", f"tests/test_core.py:{line}"] >= 2
    assert max(sites.values()) <= 4  # two, and some that were displaced later
    recorded(project, "again", "--cwm-max-frames", "500", "--cwm-per-site", "2")
    again = cwm.TraceReader(project / "again" / "main.cwmtraces")
    assert [(e.key, e.metadata) for e in again.entries()] == [(e.key, e.metadata) for e in store.entries()]
    # A thread shows its number.
    traces = [[e.trace for e in one.entries() if "test_threads" not in e.key] for one in (store, again)]
    assert traces[0] == traces[1] and len(traces[0]) == len(store) - 1


def test_cases_of_a_parametrized_test(tmp_path):
    """As units they are tests like others; calls that they make come from one line."""
    small(
        tmp_path,
        test="import pack, pytest\n@pytest.mark.parametrize('x', [1, 2, 3])\ndef test_it(x):\n    pack.f(x)\n",
    )
    recorded(tmp_path, "tests", "--cwm-unit", "test", "--cwm-per-site", "1")
    assert [test for test, _ in found(tmp_path, "tests")] == [f"test_it.py::test_it[{n}]" for n in (1, 2, 3)]
    recorded(tmp_path, "few", "--cwm-unit", "test", "--cwm-per-function", "2", "--cwm-seed", "1")
    assert len(set(kept(tmp_path / "few", per_function=2))) == 2
    recorded(tmp_path, "calls", "--cwm-unit", "call", "--cwm-per-site", "1")
    assert len(kept(tmp_path / "calls")) == 1


def kept(folder, **limits):
    """Return the samples of a recording, which may contain calls that others displaced."""
    from cwm_core.corpus.repository import read_recording

    return [sample.provenance["test"] for sample in read_recording(folder, **limits)]


calls = st.tuples(st.sampled_from("fgh"), st.sampled_from("abc"))


@given(st.lists(calls, max_size=60), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_samples_of_processes_make_that_of_all(made, per_site, per_function, processes, random):
    """Against the definition: the least of each site, of those the least of each function."""
    numbered = [(priority(0, "test", *call, n), *call) for n, call in enumerate(made)]
    by_site = [call for call in numbered if sorted(c for c in numbered if c[1:] == call[1:]).index(call) < per_site]
    expected = {call for call in by_site if sorted(c for c in by_site if c[1] == call[1]).index(call) < per_function}
    random.shuffle(numbered)
    kept = set()
    for process in range(processes):
        sample = CallSample(per_site, per_function)
        kept |= {call for call in numbered[process::processes] if sample.add(call[1], call[2], call[0])}
    assert expected <= kept
    merged = CallSample(per_site, per_function)
    assert {call for call in sorted(kept) if merged.add(call[1], call[2], call[0])} == expected
