"""Compare the packed loader with a memory copy of the bytes that it returns, and its packing with seqpacker.

Documents of log-normal length (median 1,100 tokens, sigma 1.6), shards in the page cache. `packing_scale.py` measures
what depends on the size of a corpus. Install seqpacker with `pip install seqpacker`; it is not a
development dependency because its installation compiles it.
"""

import json
from itertools import cycle, islice

import cwm_core as cwm
import numpy as np
import pytest

ROWS = {8192: 32, 131_072: 2}  # by tokens a row
VOCAB_SIZE = 128_256
ARRAYS = ("tokens", "targets", "loss_mask", "position_ids")
DOCUMENTS = 10_000
PACKED_DOCUMENTS = 200_000

seq_lens = pytest.mark.parametrize("seq_len", ROWS)


def lengths(count):
    return np.maximum(1, np.random.default_rng(0).lognormal(np.log(1100), 1.6, count).astype(np.int64))


@pytest.fixture(scope="module")
def documents(quick):
    return 500 if quick else DOCUMENTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    """Write shards of about 40 million tokens."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with cwm.ShardWriter(folder, VOCAB_SIZE) as writer:
        for length in lengths(documents):
            writer.add(rng.integers(0, VOCAB_SIZE, length, dtype=np.int32))
    cwm.Shards(folder).verify()
    return folder


def open_loader(folder, seq_len, **options):
    return cwm.PackedLoader(folder, seq_len, batch_size=ROWS[seq_len], **options)


def measure(benchmark, group, implementation, batch):
    benchmark.group = group
    benchmark.extra_info = {
        "implementation": implementation,
        "bytes": sum(getattr(batch, name).nbytes for name in ARRAYS),
        "tokens": batch.tokens.size - batch.padding,
    }


@seq_lens
@pytest.mark.parametrize("prefetch", [0, 2])
def test_next_batch(benchmark, folder, seq_len, prefetch):
    """Without prefetching, the time includes all work of the loader; with it, only the work that was not done ahead."""
    loader = open_loader(folder, seq_len, prefetch=prefetch)
    name = "cwm_core" if prefetch == 0 else f"cwm_core, prefetch={prefetch}"
    measure(benchmark, f"packed loader, {seq_len}", name, next(loader))
    benchmark(next, loader)


@seq_lens
def test_copy(benchmark, folder, seq_len, quick):
    """Copy batches from memory into reused arrays. There are more of them than fit into the caches."""
    loader = open_loader(folder, seq_len)
    batch = next(loader)
    batches = cycle([[getattr(batch, name).copy() for name in ARRAYS] for batch in islice(loader, 2 if quick else 80)])
    into = [getattr(batch, name).copy() for name in ARRAYS]
    measure(benchmark, f"packed loader, {seq_len}", "memory copy", batch)
    benchmark(lambda: [np.copyto(new, old) for new, old in zip(into, next(batches), strict=True)])


@seq_lens
def test_copy_in_cache(benchmark, folder, seq_len):
    """Copy one batch repeatedly, within the processor's caches."""
    batch = next(open_loader(folder, seq_len))
    pairs = [(getattr(batch, name).copy(), getattr(batch, name)) for name in ARRAYS]
    measure(benchmark, f"packed loader, {seq_len}", "memory copy within the cache", batch)
    benchmark(lambda: [np.copyto(new, old) for new, old in pairs])


def test_load_state(benchmark, folder, documents):
    """Resume in the third epoch, up to the first batch."""
    loader = open_loader(folder, 8192)
    while loader.stats().documents < 2.5 * documents:
        loader.skip(1)
    state = loader.state_dict()

    def resume():
        loader.load_state_dict(state)
        next(loader)

    benchmark.group = "loader resume"
    benchmark.extra_info = {"implementation": "cwm_core", "state_bytes": len(json.dumps(state))}
    benchmark(resume)


@pytest.fixture(scope="module")
def packed_documents(quick):
    return 2000 if quick else PACKED_DOCUMENTS


@pytest.fixture(scope="module")
def packed_folder(tmp_path_factory, packed_documents):
    """Write many documents whose tokens are never read."""
    folder = tmp_path_factory.mktemp("packed")
    with cwm.ShardWriter(folder, 1 << 16, shard_tokens=1 << 40) as writer:
        longest = np.zeros(lengths(packed_documents).max(), dtype=np.uint16)
        for length in lengths(packed_documents):
            writer.add(longest[:length])
    return folder


def count_rows(folder, seq_len):
    loader = cwm.PackedLoader(folder, seq_len, epochs=1)
    return loader.skip(1 << 40)


@seq_lens
def test_packing(benchmark, packed_folder, packed_documents, seq_len):
    """Plan an epoch: shuffle, draw, and pack documents by windows. The efficiency is in the extra information."""
    loader = cwm.PackedLoader(packed_folder, seq_len, batch_size=ROWS[seq_len], epochs=1)
    start = loader.state_dict()

    def plan():
        loader.load_state_dict(start)
        loader.skip(1 << 40)

    benchmark.group = f"packing of {packed_documents:,} documents, {seq_len}"
    benchmark.pedantic(plan, rounds=5)
    # Do not count rows of the last step that are all padding.
    rows = count_rows(packed_folder, seq_len)
    efficiency = loader.stats().tokens / (rows * seq_len)
    benchmark.extra_info.update(implementation="cwm_core", rows=rows, efficiency=efficiency)


def pieces_of(documents, seq_len):
    whole, rest = documents // seq_len, documents % seq_len
    return np.concatenate([np.full(whole.sum(), seq_len), rest[rest > 0]])


@seq_lens
@pytest.mark.parametrize("algorithm", ["BFD", "FFD", "OBFD", "BF", "BFD by windows"])
def test_seqpacker(benchmark, packed_documents, seq_len, algorithm):
    """Pack lengths in memory: all at once, or in windows of as many documents as our loader packs together.

    Long documents are cut beforehand. Nothing is shuffled or mixed.
    """
    seqpacker = pytest.importorskip("seqpacker")
    documents = lengths(packed_documents)
    name, _, by_windows = algorithm.partition(" ")
    window = 65_536 if by_windows else len(documents)
    windows = [pieces_of(documents[at : at + window], seq_len) for at in range(0, len(documents), window)]
    packer = seqpacker.Packer(seq_len, name.lower())
    benchmark.group = f"packing of {packed_documents:,} documents, {seq_len}"
    packed = benchmark.pedantic(lambda: [packer.pack_flat(pieces) for pieces in windows], rounds=5)
    rows = sum(len(offsets) + 1 for _, offsets in packed)
    efficiency = float(documents.sum() / (rows * seq_len))
    benchmark.extra_info.update(implementation=f"seqpacker, {algorithm}", rows=rows, efficiency=efficiency)
