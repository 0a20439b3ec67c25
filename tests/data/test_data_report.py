"""Reports on shards agree with plain counts."""

import cwm_core as cwm
import numpy as np
from cwm_core.data import describe
from cwm_core.data.report import ShardSummary, SourceSummary, histogram, inspect, packing
from hypothesis import given
from hypothesis import strategies as st


def test_histogram_bins_end_at_powers_of_two():
    assert histogram(np.array([1], np.uint32)) == [(1, 1, 1, 1)]
    bins = histogram(np.array([3, 4, 5, 9, 16, 17], np.uint32))
    assert bins == [(3, 4, 2, 7), (5, 8, 1, 5), (9, 16, 2, 25), (17, 32, 1, 17)]


@given(st.lists(st.integers(1, 2**32 - 1), min_size=1))
def test_every_length_is_in_its_bin(lengths):
    bins = histogram(np.array(lengths, np.uint32))
    for low, high, documents, tokens in bins:
        inside = [length for length in lengths if low <= length <= high]
        assert (documents, tokens) == (len(inside), sum(inside))
    assert sum(documents for _, _, documents, _ in bins) == len(lengths)


def write(folder):
    with cwm.ShardWriter(folder, 100, shard_tokens=20) as writer:
        for length, source in [(10, "x"), (20, "y"), (30, "x"), (4, "z")]:
            spans = {"half": [[0, length // 2]], "twice": [[0, 2], [1, 3]]}
            writer.add(np.zeros(length, dtype=np.int32), np.arange(length) > 1, source, spans)


def test_describe(tmp_path):
    write(tmp_path)
    assert describe(tmp_path) == ShardSummary(
        tokens=64,
        documents=4,
        vocab_size=100,
        mean_length=16.0,
        median_length=15.0,
        max_length=30,
        sources={
            "x": SourceSummary(tokens=40, documents=2, share=0.625),
            "y": SourceSummary(tokens=20, documents=1, share=0.3125),
            "z": SourceSummary(tokens=4, documents=1, share=0.0625),
        },
    )


def test_inspect_counts_tokens_in_the_loss_and_in_spans(tmp_path):
    write(tmp_path)
    lines = "\n".join(inspect(tmp_path))
    assert f"{'in the loss':<30} {56 / 64:>7.1%}" in lines
    assert f"{'in spans: half':<30} {32 / 64:>7.1%}" in lines
    assert f"{'in spans: twice':<30} {12 / 64:>7.1%}" in lines  # a token in two spans counts once


def test_packing_reports_its_progress(tmp_path):
    write(tmp_path)
    steps = []
    lines = list(packing([str(tmp_path)], 8, progress=steps.append))
    assert steps == []  # fewer steps than it reports at a time
    assert "rows        8 of 8 tokens, in 8 steps" in lines[-3]
    assert "(75.0%) are longer than a row" in lines[-2]
