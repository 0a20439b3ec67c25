"""The packed loader beside a memory copy of the bytes it returns.

Documents of log-normal length (median 1,100 tokens, sigma 1.6) in rows of 8,192, shards in the page cache.
"""

import json

import cwm_core as cwm
import numpy as np
import pytest

SEQ_LEN = 8192
BATCH_SIZE = 32
VOCAB_SIZE = 128_256
ARRAYS = ("tokens", "targets", "loss_mask", "position_ids", "cu_seqlens", "source_ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """About 38 million tokens."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with cwm.ShardWriter(folder, VOCAB_SIZE) as writer:
        for length in np.maximum(1, rng.lognormal(np.log(1100), 1.6, 10_000).astype(int)):
            writer.add(rng.integers(0, VOCAB_SIZE, length, dtype=np.int32))
    cwm.Shards(folder).verify()
    return folder


def batch_bytes(batch):
    return sum(getattr(batch, name).nbytes for name in ARRAYS)


def measure(benchmark, implementation, batch):
    benchmark.group = "packed loader"
    benchmark.extra_info = {
        "implementation": implementation,
        "bytes": batch_bytes(batch),
        "tokens": batch.tokens.size - batch.padding,
    }


def test_next_batch(benchmark, folder):
    loader = cwm.PackedLoader(folder, SEQ_LEN, batch_size=BATCH_SIZE)
    measure(benchmark, "cwm_core", next(loader))
    benchmark(next, loader)


def test_copy_into_new_arrays(benchmark, folder):
    batch = next(cwm.PackedLoader(folder, SEQ_LEN, batch_size=BATCH_SIZE))
    measure(benchmark, "memory copy", batch)
    benchmark(lambda: [getattr(batch, name).copy() for name in ARRAYS])


def test_copy_into_old_arrays(benchmark, folder):
    batch = next(cwm.PackedLoader(folder, SEQ_LEN, batch_size=BATCH_SIZE))
    pairs = [(getattr(batch, name).copy(), getattr(batch, name)) for name in ARRAYS]
    measure(benchmark, "memory copy, arrays reused", batch)
    benchmark(lambda: [np.copyto(new, old) for new, old in pairs])


def test_load_state(benchmark, folder):
    """Going on in the third epoch; there is no peer, and nothing is read but document lengths."""
    loader = cwm.PackedLoader(folder, SEQ_LEN, batch_size=BATCH_SIZE)
    while loader.stats()["documents"] < 25_000:
        next(loader)
    state = loader.state_dict()
    benchmark.group = "loader resume"
    benchmark.extra_info = {"implementation": "cwm_core", "bytes": len(json.dumps(state)), "tokens": 0}
    benchmark(loader.load_state_dict, state)


@pytest.mark.parametrize("lookahead", [1, 16, 128])
def test_packing_efficiency(benchmark, folder, lookahead):
    """A whole epoch, row by row; the efficiency is in the extra information."""

    def epoch():
        loader = cwm.PackedLoader(folder, SEQ_LEN, lookahead=lookahead, epochs=1)
        return sum(batch_bytes(batch) for batch in loader), loader.stats()

    benchmark.group = "packing efficiency"
    total_bytes, stats = benchmark.pedantic(epoch, rounds=1)
    benchmark.extra_info.update(
        implementation="cwm_core",
        bytes=total_bytes,
        tokens=stats["tokens"],
        lookahead=lookahead,
        efficiency=stats["efficiency"],
    )
