"""Choosing among candidate patches: by tests, then majority, then length."""

import pytest
from cwm_core import machines
from cwm_core.environments import Task, judge_candidates, make_diff, select, written_test
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from hypothesis import given
from hypothesis import strategies as st
from small_repositories import TEST_COMMAND

KIND = "process" if machines.bubblewrap_refusal() else "bubblewrap"
BACKEND = SandboxBackend(KIND, readable=installed_packages())


def patch(after, path="x.py"):
    return make_diff(path, b"a\n", after)


A, A_LONG, B, C = patch(b"b\n"), patch(b"# why\nb\n"), patch(b"c\n"), patch(b"d\n")


def test_most_tests_win():
    chosen = select([A, A, B], [[True, False], [True, False], [True, True]])
    assert (chosen.index, chosen.passed, chosen.votes) == (2, (1, 1, 2), (0, 0, 1))


def test_then_the_majority_of_patches_that_do_the_same():
    assert select([B, A_LONG, A, C], [[True], [True], [True], [False]]).index == 2  # A twice, the shorter
    assert select([B, A_LONG, A], [[True], [True], [False]]).index == 0  # who passes fewer has no vote


def test_ties_go_to_the_shortest_then_the_first():
    assert select([patch(b"long\n"), B, C], [[], [], []]).index == 1


def test_empty_patches_are_the_last_resort():
    assert select(["", "", B], [[True], [True], [False]]).index == 2
    assert select(["", ""], [[True], [True]]).index == 0


@pytest.mark.parametrize(("patches", "outcomes"), [([], []), ([A], []), ([A, B], [[True], []])])
def test_other_shapes_are_refused(patches, outcomes):
    with pytest.raises(ValueError, match="patches"):
        select(patches, outcomes)


@given(st.data())
def test_the_choice_is_a_best_one(data):
    patches = data.draw(st.lists(st.sampled_from([A, A_LONG, B, C, ""]), min_size=1, max_size=8))
    tests = data.draw(st.integers(0, 4))
    outcomes = [data.draw(st.lists(st.booleans(), min_size=tests, max_size=tests)) for _ in patches]
    chosen = select(patches, outcomes)
    real = [i for i, p in enumerate(patches) if p] or range(len(patches))
    most = max(chosen.passed[i] for i in real)
    finalists = [i for i in real if chosen.passed[i] == most]
    assert chosen.index in finalists
    assert chosen.votes[chosen.index] == max(chosen.votes[i] for i in finalists)
    # Whatever the order in which candidates come, the choice has the same rank.
    order = data.draw(st.permutations(range(len(patches))))
    again = select([patches[i] for i in order], [outcomes[i] for i in order])
    assert len(patches[order[again.index]]) == len(patches[chosen.index])


def test_candidates_are_run(tmp_path):
    before = b"def add(a, b):\n    return a - b\n"
    (tmp_path / "sums.py").write_bytes(before)
    right = make_diff("sums.py", before, before.replace(b"-", b"+"))
    near = make_diff("sums.py", before, before.replace(b"a - b", b"a - -b if b > 0 else 0"))
    candidates = [near, "nonsense", right, right, ""]
    tests = [
        written_test("from sums import add\ndef test_a(): assert add(2, 3) == 5\n", command=TEST_COMMAND, seconds=30),
        written_test("from sums import add\ndef test_b(): assert add(2, -3) == -1\n", command=TEST_COMMAND, seconds=30),
        written_test("no tests here", command=TEST_COMMAND, seconds=30),
        lambda machine: machine.run("ls test_cwm* .cwm* 2>/dev/null", seconds=5).stdout == b"",
        lambda machine: int("x"),
    ]
    outcomes = judge_candidates(Task("t", "", tmp_path), candidates, tests, BACKEND, seconds=30, workers=2)
    assert outcomes == [
        [True, False, False, True, False],
        [False] * 5,
        [True, True, False, True, False],
        [True, True, False, True, False],
        [False] * 5,
    ]
    assert select(candidates, outcomes).index == 2
