"""Duplicates are found whichever process made their sketches, and after a resume as before."""

from __future__ import annotations

import pickle
import random
from itertools import pairwise

import cwm_core as cwm
import pytest

pytest.importorskip("rensa")

from cwm_core.corpus.filters import Drop, Duplicates, Sample, sketch
from cwm_core.corpus.generator import generate


def made(lines: list[str], context: str = "") -> cwm.Trace:
    frames = [f"<|line_sep|>{{}}<|action_sep|>{line}\n<|frame_sep|>" for line in lines]
    return cwm.Trace.parse("".join(frames)).trace.with_context(context)


def changed(lines: list[str], count: int, rng: random.Random) -> list[str]:
    """Return the lines with `count` of them replaced, far enough apart that each changes two pairs."""
    copy = list(lines)
    for at in rng.sample(range(1, len(lines) - 1, 3), count):
        copy[at] += " # changed"
    return copy


def similarity(one: list[str], other: list[str]) -> float:
    pairs = [set(pairwise(lines)) for lines in (one, other)]
    return len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])


def reason(drop: Drop | None) -> str | None:
    return drop and drop.reason


def test_the_sketch_is_that_of_pairs_of_frames() -> None:
    """Traces well above the threshold of exact similarity are dropped, and traces well below it stay."""
    rng = random.Random(1)
    outcomes = []
    for _ in range(60):
        lines = [f"line {rng.random()}" for _ in range(300)]
        for count in (0, 3, 8, 30, 60, 90):
            other = changed(lines, count, rng)
            exact = similarity(lines, other)
            duplicates = Duplicates(0.8)
            assert duplicates.check("a", sketch(made(lines))) is None
            outcomes.append((exact, reason(duplicates.check("b", sketch(made(other))))))
    assert {found for exact, found in outcomes if exact == 1} == {"duplicate"}
    assert {found for exact, found in outcomes if 0.93 < exact < 1} == {"near duplicate"}
    assert {found for exact, found in outcomes if exact < 0.65} == {None}


def test_the_context_does_not_make_traces_similar() -> None:
    file = "".join(f"x{number} = {number}\n" for number in range(500))
    duplicates = Duplicates()
    assert duplicates.check("a", sketch(made(["one", "two", "three"], file))) is None
    assert duplicates.check("b", sketch(made(["four", "five", "six"], file))) is None
    assert reason(duplicates.check("c", sketch(made(["four", "five", "six"], file + "\n")))) == "near duplicate"
    assert reason(duplicates.check("d", sketch(made(["four", "five", "six"], file)))) == "duplicate"


def samples() -> list[Sample]:
    """Return recordings: one in three occurs twice, one in three has a changed number."""
    found = []
    for seed in range(60):
        program = generate(seed)
        body = program.code + f"\ndef long():\n    for i in range(50):\n        {program.call}\n    return {seed}\n"
        found.append(Sample(f"{seed:03}/0", body, "long()", cwm.record_source(body, "long()")))
        if seed % 3:
            body = body if seed % 3 == 1 else body.replace(f"return {seed}\n", f"return {seed + 1}\n")
            found.append(Sample(f"{seed:03}/1", body, "long()", cwm.record_source(body, "long()")))
    return found


def test_sketches_of_workers_and_resumes_make_no_difference() -> None:
    everything = [sample for sample in samples() if sample.trace.exception is None]
    straight = Duplicates()
    drops = [straight(sample) for sample in everything]
    assert {reason(drop) for drop in drops} == {None, "duplicate", "near duplicate"}
    assert all(drop.detail < one.id for drop, one in zip(drops, everything, strict=True) if drop)
    assert len(straight) == drops.count(None)

    sketches = {one.id: sketch(one.trace) for one in random.Random(1).sample(everything, len(everything))}
    resumed, again, kept = Duplicates(), [], []
    for number, one in enumerate(everything):
        if number % 20 == 10:
            resumed = Duplicates()
            assert [resumed.check(*pair) for pair in kept] == [None] * len(kept)
        again.append(resumed.check(one.id, pickle.loads(pickle.dumps(sketches[one.id]))))
        if again[-1] is None:
            kept.append((one.id, sketches[one.id]))
    assert again == drops


@pytest.mark.parametrize("threshold", [0, -1, 1.1])
def test_invalid_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        Duplicates(threshold)
