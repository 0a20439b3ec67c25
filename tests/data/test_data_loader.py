"""The packed loader against plain Python, and its resumption on other world sizes."""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.data import Bucket
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB_SIZE = 1 << 20


@st.composite
def corpora(draw):
    """Draw sources of documents (ids, mask or None). All ids differ, so an id identifies its document and position."""
    corpus, next_id = {}, 1
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        documents = []
        for length in draw(st.lists(st.integers(1, 50), min_size=1, max_size=25)):
            mask = draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length))
            documents.append((list(range(next_id, next_id + length)), mask))
            next_id += length
        corpus[name] = documents
    return corpus


@st.composite
def orders(draw):
    """Arguments of PackedLoader on which the order of rows depends."""
    options = {
        "seq_len": draw(st.integers(1, 40)),
        "batch_size": draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "packing": draw(st.sampled_from(["best_fit", "stream"])),
        "lookahead": draw(st.integers(1, 20)),
    }
    if draw(st.booleans()):
        lengths = [*sorted(draw(st.sets(st.integers(1, 50), min_size=1, max_size=3))), None]
        sizes = st.tuples(st.integers(1, 5), st.none() | st.integers(1, 60), st.none() | st.integers(1, 9))
        options["buckets"] = [Bucket(length, *draw(sizes)) for length in lengths]
    return options


def write(folder, corpus, shard_tokens=60):
    """Write the corpus, one folder a source, and return the loader's sources."""
    for name, documents in corpus.items():
        with cwm.ShardWriter(Path(folder, name), VOCAB_SIZE, shard_tokens=shard_tokens) as writer:
            for ids, mask in documents:
                writer.add(np.array(ids, dtype=np.int32), mask, source=name)
    return {name: (Path(folder, name), 1.0 + i) for i, name in enumerate(corpus)}


def content(*parts):
    """Return everything in the ranks' parts of a step, row by row, without rows of padding only."""
    rows = []
    for part in parts:
        bounds = part.cu_seqlens.tolist()
        segments = list(zip(bounds, bounds[1:], part.source_ids.tolist(), part.document_ids.tolist(), strict=False))
        for row in range(len(part.tokens)):
            begin, end = row * part.tokens.shape[1], (row + 1) * part.tokens.shape[1]
            inside = [(b - begin, e - begin, *ids) for b, e, *ids in segments if begin <= b < end]
            if inside != [(0, end - begin, -1, -1)]:
                arrays = (part.tokens, part.targets, part.loss_mask, part.position_ids)
                rows.append((inside, part.global_window, *(array[row].tolist() for array in arrays)))
    return rows


def check_batch(batch, corpus, packing):
    """Compare every position with the documents; return the pieces as (source, first id, length)."""
    documents = {ids[0]: (name, ids, mask) for name, docs in corpus.items() for ids, mask in docs}
    start_of = {token: ids[0] for _, ids, _ in documents.values() for token in ids}
    names = list(corpus)
    seq_len = batch.tokens.shape[1]
    tokens, targets, masks, positions = (
        array.ravel().tolist() for array in (batch.tokens, batch.targets, batch.loss_mask, batch.position_ids)
    )
    pieces, padding = [], 0
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == len(tokens)
    segments = zip(batch.cu_seqlens, batch.cu_seqlens[1:], batch.source_ids, strict=False)
    for segment, (begin, end, source) in enumerate(segments):
        assert 0 < end - begin <= batch.max_seqlen
        assert begin // seq_len == (end - 1) // seq_len
        assert positions[begin:end] == list(range(end - begin))
        if source < 0:
            assert not any(tokens[begin:end]) and not any(targets[begin:end]) and not any(masks[begin:end])
            assert end % seq_len == 0
            padding += end - begin
            continue
        name, ids, mask = documents[start_of[tokens[begin]]]
        assert name == names[source]
        offset = ids.index(tokens[begin])
        assert tokens[begin:end] == ids[offset : offset + end - begin]
        assert ids is list(corpus.values())[source][batch.document_ids[segment]][0]
        if packing == "best_fit":
            assert offset % seq_len == 0 and (end - begin == seq_len or offset + end - begin == len(ids))
        else:
            assert (offset == 0 or begin % seq_len == 0) and (end % seq_len == 0 or offset + end - begin == len(ids))
        for at in range(begin, end):
            following = offset + at - begin + 1
            if following == len(ids):
                assert (targets[at], masks[at]) == (0, False)
            else:
                assert (targets[at], masks[at]) == (ids[following], mask is None or mask[following])
        pieces.append((name, tokens[begin], int(end - begin)))
    assert padding == batch.padding
    assert sum(length for _, _, length in pieces) + padding == len(tokens)
    assert batch.max_seqlen == np.diff(batch.cu_seqlens).max()
    return pieces


@settings(max_examples=100, deadline=None)
@given(corpus=corpora(), order=orders(), epochs=st.integers(1, 3), prefetch=st.integers(0, 3))
def test_batches_equal_the_documents(corpus, order, epochs, prefetch):
    with tempfile.TemporaryDirectory() as folder:
        loader = cwm.PackedLoader(write(folder, corpus), **order, epochs=epochs, prefetch=prefetch)
        seen, positions = [], 0
        for batch in loader:
            pieces = check_batch(batch, corpus, order["packing"])
            seen += [token for _, first, n in pieces for token in range(first, first + n)]
            positions += batch.tokens.size
            assert batch.tokens.shape in {
                (bucket.batch_size, bucket.seq_len or order["seq_len"])
                for bucket in order.get("buckets", [Bucket(None, order["batch_size"])])
            }
        expected = [token for documents in corpus.values() for ids, _ in documents for token in ids]
        assert sorted(seen) == sorted(expected * epochs)
        stats = loader.stats()
        assert stats.tokens == len(expected) * epochs
        assert stats.documents == sum(map(len, corpus.values())) * epochs
        assert stats.efficiency == pytest.approx(stats.tokens / positions)
        assert stats.source_tokens == {
            name: epochs * sum(len(ids) for ids, _ in documents) for name, documents in corpus.items()
        }


@settings(max_examples=100, deadline=None)
@given(
    corpus=corpora(),
    order=orders(),
    epochs=st.none() | st.integers(1, 3),
    stops=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 14), st.integers(0, 3)), max_size=4),
)
def test_resuming_on_any_world_size_equals_one_uninterrupted_rank(corpus, order, epochs, stops):
    steps = 25
    with tempfile.TemporaryDirectory() as folder:
        sources = write(folder, corpus)

        def loaders(world_size, prefetch, state=None):
            options = {**order, "epochs": epochs, "world_size": world_size, "prefetch": prefetch}
            ranks = [cwm.PackedLoader(sources, rank=rank, **options) for rank in range(world_size)]
            for rank in ranks if state else []:
                rank.load_state_dict(json.loads(state))
            return ranks

        whole = loaders(1, 0)[0]
        expected = [content(batch) for _, batch in zip(range(steps), whole, strict=False)]
        got, state = [], None
        for count, world_size, prefetch in [*stops, (steps, 1, 2)]:
            ranks = loaders(world_size, prefetch, state)
            for _ in range(min(count, steps - len(got))):
                parts = [next(rank, None) for rank in ranks]
                if parts[0] is None:
                    assert parts == [None] * world_size
                    break
                assert len({part.tokens.shape for part in parts}) == 1
                got.append(content(*parts))
            states = {json.dumps(rank.state_dict()) for rank in ranks}
            assert len(states) == 1
            state = states.pop()
        assert got == expected
        assert json.loads(state) == whole.state_dict()
        assert ranks[0].stats() == whole.stats()


@settings(max_examples=50, deadline=None)
@given(corpus=corpora(), order=orders(), steps=st.integers(0, 30))
def test_skipping_equals_reading(corpus, order, steps):
    with tempfile.TemporaryDirectory() as folder:
        sources = write(folder, corpus)
        reader, skipper = (cwm.PackedLoader(sources, **order, epochs=2) for _ in range(2))
        read = sum(1 for _ in islice(reader, steps))
        assert skipper.skip(steps) == read
        assert skipper.state_dict() == reader.state_dict()
        assert [content(batch) for batch in skipper] == [content(batch) for batch in reader]


def lognormal_corpus(folder, count, seed=0):
    """Write documents of log-normal length (median 1,100, sigma 1.6)."""
    rng = np.random.default_rng(seed)
    lengths = np.maximum(1, rng.lognormal(np.log(1100), 1.6, count).astype(int))
    with cwm.ShardWriter(folder, 128_256) as writer:
        for length in lengths:
            writer.add(rng.integers(0, 128_256, length, dtype=np.int32))
    return lengths


def test_state_is_small_and_packing_tight_at_every_step(tmp_path):
    lognormal_corpus(tmp_path, 2000)
    loader = cwm.PackedLoader(tmp_path, 8192, epochs=1)
    assert max(len(json.dumps(loader.state_dict())) for _ in loader) < 1000
    assert loader.stats().efficiency > 0.998  # all rows but one


def test_a_state_of_many_sources_and_buckets_is_a_few_kilobytes(tmp_path):
    for i in range(20):
        with cwm.ShardWriter(tmp_path / str(i), 100) as writer:
            for length in range(1, 40):
                writer.add(np.zeros(length, dtype=np.int32))
    buckets = [Bucket(10, 4), Bucket(20, 2), Bucket(None, 1)]
    loader = cwm.PackedLoader({str(i): (tmp_path / str(i), 1.0) for i in range(20)}, 64, buckets=buckets)
    assert loader.skip(10_000) == 10_000
    assert len(json.dumps(loader.state_dict())) < 4000


def test_the_seed_decides_the_order_and_each_epoch_has_its_own(tmp_path):
    sources = write(tmp_path, {"a": [([i], None) for i in range(1, 101)]})

    def order(seed):
        loader = cwm.PackedLoader(sources, seq_len=100, seed=seed, packing="stream", epochs=2)
        return [batch.tokens[0].tolist() for batch in loader]

    first, second = order(seed=1)
    assert [first, second] == order(seed=1)
    assert first != second != order(seed=2)[0] != first
    assert sorted(first) == sorted(second) == list(range(1, 101))


def test_shares_hold_whatever_the_sizes(tmp_path):
    sizes = {"a": 3, "b": 50, "c": 400}
    write(tmp_path, {name: [(list(range(1 + i % 40)), None) for i in range(n)] for name, n in sizes.items()})
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    loader = cwm.PackedLoader(
        {name: (tmp_path / name, share) for name, share in shares.items()}, 64, batch_size=4, lookahead=8
    )
    for _ in range(300):
        next(loader)
    stats = loader.stats()
    for name, share in shares.items():
        # A source is off by a document at most, and a window holds little more than eight.
        assert abs(stats.source_tokens[name] - share * stats.tokens) < 20 * 40


def test_arrays_and_tensors_share_memory(tmp_path):
    torch = pytest.importorskip("torch")
    sources = write(tmp_path, {"a": [(list(range(10)), None)]})
    batch = next(cwm.PackedLoader(sources, seq_len=16))
    tensors = batch.to_torch()
    assert tensors.tokens.data_ptr() == batch.tokens.ctypes.data
    assert tensors.tokens.dtype == tensors.cu_seqlens.dtype == torch.int32
    assert tensors.loss_mask.dtype == torch.bool
    assert tensors.max_seqlen == 10
    assert not batch.tokens.flags.owndata and batch.tokens.flags.c_contiguous


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": {}}, "no sources"),
        ({"sources": {"a": ("a", 0.0)}}, 'source "a": the share must be positive, not 0'),
        ({"sources": {"a": ("a", float("nan"))}}, "must be positive"),
        ({"sources": {"a": ("a", 1.0), "b": ("small", 1.0)}}, '"b" has a vocabulary of 16'),
        ({"sources": "empty"}, "no token shards"),
        ({"rank": 1}, "rank 1 must be less than world_size 1"),
        ({"rank": -1}, "rank must not be negative"),
        ({"seq_len": 0}, "must be at least 1"),
        ({"lookahead": 0}, "lookahead must be 1 to 1048576"),
        ({"packing": "tight"}, 'packing must be "best_fit" or "stream"'),
        ({"seq_len": 2**25}, "rows of at most 16777216 tokens"),
        ({"buckets": [Bucket(5, 1)]}, "the last bucket must have no max_length"),
        ({"buckets": [Bucket(5, 1), Bucket(5, 1), Bucket(None, 1)]}, "must be greater than that of the previous one"),
        ({"mask": {"context": 1}}, 'mask "context": no shard has spans with this label'),
        ({"mask": {"x": 1.5}}, 'mask "x": the fraction to exclude must be 0 to 1, not 1.5'),
        ({"sources": {"a": ("a", 1.0, 0)}}, 'source "a": epochs must be at least 1'),
        ({"sources": {"a": ("a", 1.0, 1, 2)}}, "must be a folder, its share and its epochs"),
        ({"prefetch": -1}, "prefetch must not be negative"),
        ({"prefetch": 2**63}, "prefetch must be at most 65536"),
        ({"seed": 2**64}, r"seed must be less than 2\^64"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"seq_len": 2**31}, r"fewer than 2\^31"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a": [([1, 2, 3], None)]})
    Path("empty").mkdir()
    with cwm.ShardWriter("small", 16) as writer:
        writer.add(np.array([1], dtype=np.uint16))
    with pytest.raises(ValueError, match=message):
        cwm.PackedLoader(**{"sources": "a", "seq_len": 8, **change})


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cwm.PackedLoader(tmp_path / "nowhere", seq_len=8)


def test_a_state_of_another_run_is_refused(tmp_path):
    corpus = {"a": [(list(range(i, i + 9)), None) for i in range(0, 90, 9)]}
    sources = write(tmp_path / "one", corpus)
    loader = cwm.PackedLoader(sources, seq_len=16, seed=1)
    next(loader)
    state = loader.state_dict()
    with pytest.raises(ValueError, match="changed \\(then -> now\\): seed 1 -> 2"):
        cwm.PackedLoader(sources, seq_len=16, seed=2).load_state_dict(state)
    corpus["a"][3][0][4] += 1
    with pytest.raises(ValueError, match="source 'a': the content of files"):
        cwm.PackedLoader(write(tmp_path / "two", corpus), seq_len=16, seed=1).load_state_dict(state)
    place = state["places"][0]
    for broken in (
        {key: value for key, value in state.items() if key != "places"},
        {**state, "places": [{**place, "cursors": [["x", 0]]}]},
        {**state, "places": [{**place, "cursors": []}]},
        {**state, "places": [{**place, "cursors": [[2**60, 2**60]]}]},
        {**state, "places": [{**place, "taken": 99}]},
        {**state, "places": [{**place, "rest": [0, 0, 0]}]},
        {**state, "places": []},
        {**state, "steps": -1},
        {**state, "tokens": []},
    ):
        with pytest.raises(ValueError, match="loader state"):
            loader.load_state_dict(broken)
        assert loader.state_dict() == state


def running_loader(tmp_path, prefetch):
    """A loader after its first batch of 500 tokens of one long document, that batch, and the shard."""
    write(tmp_path, {"a": [(list(range(1, 200_001)), None)]}, shard_tokens=1_000_000)
    loader = cwm.PackedLoader(tmp_path / "a", seq_len=500, packing="stream", prefetch=prefetch)
    return loader, next(loader), tmp_path / "a" / "00000.cwmtok"


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_damage_under_a_running_loader_is_an_error_that_skips_nothing(tmp_path, damage, prefetch):
    loader, _, path = running_loader(tmp_path, prefetch)
    intact = path.read_bytes()
    last = 0
    with path.open("r+b") as file:  # in place: the loader has this file mapped
        if damage == "flip":
            file.seek(4096 + 100_000)
            file.write(b"\xff")
        else:
            file.truncate(8192)
    with pytest.raises(ValueError, match=r"00000\.cwmtok: (damaged page at byte|truncated to)"):
        for batch in loader:
            assert batch.tokens.ravel()[0] == batch.targets.ravel()[0] - 1
            last = batch.tokens[0, -1]
    state = loader.state_dict()
    with pytest.raises(ValueError, match=r"00000\.cwmtok"):
        next(loader)
    assert loader.state_dict() == state
    with path.open("r+b") as file:
        file.write(intact)
    assert next(loader).tokens[0, 0] == (last or 500) + 1


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_cut_under_a_stream_of_many_documents_is_an_error(tmp_path, prefetch):
    sources = write(tmp_path, {"a": [(list(range(i, i + 50)), None) for i in range(1, 100_001, 50)]}, 1_000_000)
    loader = cwm.PackedLoader(sources, seq_len=500, packing="stream", prefetch=prefetch)
    next(loader)
    os.truncate(tmp_path / "a" / "00000.cwmtok", 4096)
    with pytest.raises(ValueError, match=r"00000\.cwmtok: truncated to"):
        for _ in loader:
            pass


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_removed_file_stays_readable_where_it_is_open(tmp_path, prefetch):
    loader, first, path = running_loader(tmp_path, prefetch)
    state = loader.state_dict()
    path.unlink()
    assert next(loader).tokens[0, 0] == first.tokens[0, -1] + 1
    loader.load_state_dict(state)
    assert next(loader).tokens[0, 0] == first.tokens[0, -1] + 1
    with pytest.raises(ValueError, match="no token shards"):
        pickle.loads(pickle.dumps(loader))


def test_threads_share_a_loader(tmp_path):
    sources = write(tmp_path, {"a": [(list(range(i, i + 50)), None) for i in range(1, 50_001, 50)]}, 10_000)
    loader = cwm.PackedLoader(sources, seq_len=128, batch_size=4, epochs=1)

    def pull(_):
        tokens = []
        for batch in loader:
            loader.state_dict()
            tokens += batch.tokens[batch.tokens > 0].tolist()
        return tokens

    with ThreadPoolExecutor(4) as pool:
        assert sorted(chain.from_iterable(pool.map(pull, range(4)))) == list(range(1, 50_001))


def tokens_of(loader, steps):
    return [next(loader).tokens.tolist() for _ in range(steps)]


def many_documents(tmp_path):
    return write(tmp_path, {"a": [(list(range(i, i + 50)), None) for i in range(1, 5001, 50)]}, 1000)


def take_in_child(loader, steps, results):
    results.put(tokens_of(loader, steps))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_resumes_at_the_position_of_the_loader(tmp_path, method, prefetch):
    sources = many_documents(tmp_path)
    loader, twin = (cwm.PackedLoader(sources, 64, batch_size=2, prefetch=prefetch) for _ in range(2))
    assert tokens_of(loader, 3) == tokens_of(twin, 3)
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=take_in_child, args=(loader, 5, results))
    child.start()
    expected = tokens_of(twin, 5)
    assert results.get(timeout=60) == expected
    child.join(60)
    assert child.exitcode == 0
    assert tokens_of(loader, 5) == expected


def test_forks_while_threads_take_batches(tmp_path):
    """Whatever a fork interrupts: the child gets batches, and ends."""
    loader = cwm.PackedLoader(many_documents(tmp_path), 64, batch_size=2, prefetch=3)
    with ThreadPoolExecutor(2) as pool:
        stop = False

        def take():
            while not stop:
                next(loader)

        takers = [pool.submit(take) for _ in range(2)]
        children = []
        for _ in range(20):
            if not (child := os.fork()):
                next(loader)
                del loader
                os._exit(0)
            children.append(child)
        stop = True
        assert {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children} == {0}
        assert [taker.result(60) for taker in takers] == [None, None]


def test_the_arrays_of_a_batch_stay_while_later_batches_are_made(tmp_path):
    loader = cwm.PackedLoader(many_documents(tmp_path), 64, batch_size=2)
    kept = []
    for _ in range(40):
        batch = next(loader)
        kept.append((batch.targets[1:], batch.targets[1:].copy()))
        batch.loss_mask.view(np.uint8)[:] = 7  # an array may be written to, also what no bool holds
    assert all((array == copy).all() for array, copy in kept)
    assert set(np.unique(next(loader).loss_mask.view(np.uint8))) <= {0, 1}


def test_memory_is_used_again(tmp_path):
    loader = cwm.PackedLoader(many_documents(tmp_path), 64, batch_size=2)
    assert len({next(loader).tokens.ctypes.data for _ in range(50)}) < 10


def test_interrupts_reach_a_waiting_loader(tmp_path):
    """A step of many rows takes long to make; Ctrl-C does not wait for it."""
    script = """
import sys, cwm_core as cwm
loader = cwm.PackedLoader(sys.argv[1], 1 << 12, batch_size=1 << 18, packing="stream")
try:
    print("ready", flush=True)
    for batch in loader:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    many_documents(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path / "a"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0] == "interrupted\n"


def test_masks_leave_out_whole_spans_the_same_in_every_epoch(tmp_path):
    with cwm.ShardWriter(tmp_path, 1000) as writer:
        for i in range(300):
            spans = {"observation": [[10, 20], [20, 35]], "context": [[0, 5]]}
            writer.add(np.arange(40), [t % 13 != i % 13 for t in range(40)], spans=spans)

    def learned(seq_len=100, **options):
        """Return by document which of its tokens are in the loss, in each epoch."""
        result = {}
        for batch in cwm.PackedLoader(tmp_path, seq_len, epochs=2, **options):
            bounds = zip(batch.cu_seqlens, batch.cu_seqlens[1:], batch.document_ids, strict=False)
            for begin, end, document in bounds:
                if document >= 0:
                    mask = batch.loss_mask.ravel()[begin:end].tolist()
                    result.setdefault(int(document), []).append([None, *mask[:-1]])
        return result

    plain, masked = learned(), learned(mask={"observation": 0.5, "context": 1})
    assert masked == learned(mask={"observation": 0.5, "context": 1}, packing="stream", seq_len=40)
    assert masked != learned(mask={"observation": 0.5, "context": 1}, seed=1)
    left_out = 0
    for document, (first, second) in masked.items():
        assert first == second
        expected = list(plain[document][0])
        expected[1:5] = [False] * 4
        for begin, end in [(10, 20), (20, 35)]:
            if not any(first[begin:end]):
                left_out += 1
                expected[begin:end] = [False] * (end - begin)
        assert first == expected
    assert 240 < left_out < 360  # of 600, give or take five standard deviations
    assert learned(mask={"observation": 0, "context": 0}) == plain


def test_buckets_keep_pace_and_hand_on_their_window(tmp_path):
    rng = np.random.default_rng(0)
    with cwm.ShardWriter(tmp_path, 100) as writer:
        for length in rng.permutation([10] * 2000 + [100] * 300 + [500] * 100):
            writer.add(np.zeros(length, dtype=np.int32))
    buckets = [Bucket(50, 8, 64), Bucket(200, 4, 256, global_window=32), Bucket(None, 1, 1024)]
    loader = cwm.PackedLoader(tmp_path, 1, buckets=buckets, epochs=1, lookahead=64)
    seen = {10: 0, 100: 0, 500: 0}
    for batch in loader:
        lengths = {int(n) for n, source in zip(np.diff(batch.cu_seqlens), batch.source_ids, strict=True) if source >= 0}
        assert len(lengths) == 1
        (length,) = lengths
        assert batch.tokens.shape == {10: (8, 64), 100: (4, 256), 500: (1, 1024)}[length]
        assert batch.global_window == (32 if length == 100 else None)
        seen[length] += int((batch.source_ids >= 0).sum())
        parts = [seen[10] / 2000, seen[100] / 300, seen[500] / 100]
        assert max(parts) - min(parts) < 0.35
    assert seen == {10: 2000, 100: 300, 500: 100}


def test_sources_have_their_own_epochs(tmp_path):
    corpus = {"a": [([1, 2, 3], None)], "b": [([10 + i], None) for i in range(30)]}
    write(tmp_path, corpus)
    loader = cwm.PackedLoader({"a": (tmp_path / "a", 1, 4), "b": (tmp_path / "b", 1), "c": tmp_path / "a"}, 8, epochs=2)
    for _ in loader:
        pass
    assert loader.stats().source_tokens == {"a": 12, "b": 60, "c": 6}


def two_lengths(folder, long=10, short=1000):
    """10 documents of 100 tokens, and 1,000 of 10; all ids differ."""
    corpus = {
        "long": [(list(range(100 * i, 100 * i + 100)), None) for i in range(long)],
        "short": [(list(range(10**5 + 10 * i, 10**5 + 10 * i + 10)), None) for i in range(short)],
    }
    return folders_of(folder, corpus, shard_tokens=10**6)


def folders_of(folder, corpus, **options):
    write(folder, corpus, **options)
    return {name: str(Path(folder, name)) for name in corpus}


def lengths_given_out(loader, steps):
    """Return the number of complete documents of each length in the next steps."""
    counts = {}
    for _ in range(steps):
        batch = next(loader)
        sizes = np.diff(batch.cu_seqlens)[batch.source_ids >= 0]
        for size in sizes.tolist():
            counts[size] = counts.get(size, 0) + 1
    return counts


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("packing", ["best_fit", "stream"])
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("endless", [None, 10**12])
def test_a_bucket_ends_when_its_sources_are_exhausted(tmp_path, prefetch, packing, epochs, endless):
    """This holds even if the documents of other sources never end, or nearly never."""
    folders = two_lengths(tmp_path)
    sources = {"long": (folders["long"], 0.5, epochs), "short": (folders["short"], 0.5, endless)}
    options = {"packing": packing, "buckets": [Bucket(50, 10), Bucket(None, 2)], "prefetch": prefetch}
    loader = cwm.PackedLoader(sources, 100, **options)
    counts = lengths_given_out(loader, 400)
    assert counts[100] == 10 * epochs
    assert counts[10] > 5000 * (3 - epochs)
    resumed = cwm.PackedLoader(sources, 100, **options)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert next(resumed).tokens.tolist() == next(loader).tokens.tolist()
    assert loader.skip(50) == resumed.skip(50) == 50
    assert resumed.state_dict() == loader.state_dict()


def test_buckets_of_several_exhausted_sources_end(tmp_path):
    """A bucket has the documents of two sources with other limits; a third source has none of its lengths."""
    corpus = {
        name: [(list(range(first + 100 * i, first + 100 * i + length)), None) for i in range(20)]
        for name, first, length in (("a", 0, 60), ("b", 10**4, 100), ("c", 2 * 10**4, 10))
    }
    folders = folders_of(tmp_path, corpus, shard_tokens=10**6)
    sources = {"c": folders["c"], "a": (folders["a"], 2.0, 1), "b": (folders["b"], 0.1, 2)}
    loader = cwm.PackedLoader(sources, 100, buckets=[Bucket(30, 3), Bucket(None, 3)], lookahead=7)
    counts = lengths_given_out(loader, 300)
    assert (counts[60], counts[100]) == (20, 40)
    assert counts[10] > 1000


def test_epochs_of_none_in_a_source_are_the_loaders(tmp_path):
    sources = folders_of(tmp_path, {"a": [([i], None) for i in range(1, 101)]})
    for spec in ((sources["a"], 1.0, None), (sources["a"], 1.0), sources["a"]):
        loader = cwm.PackedLoader({"a": spec}, 10, epochs=2)
        assert sum(int((batch.source_ids >= 0).sum()) for batch in loader) == 200


def test_a_refused_state_names_the_changes(tmp_path):
    documents = [([i, i + 1], None) for i in range(1, 60)]
    folders = folders_of(tmp_path, {"a": documents, "b": documents}, shard_tokens=20)
    sources = {"a": (folders["a"], 1.0, 2), "b": (folders["b"], 2.0)}
    options = {"seq_len": 16, "batch_size": 2, "epochs": 3}
    copied = shutil.copytree(folders["b"], tmp_path / "copied")
    state = cwm.PackedLoader(sources, **options).state_dict()
    other = [
        (sources, {"seq_len": 32}, "buckets seq_len=16 batch_size=2 -> seq_len=32 batch_size=2"),
        (sources, {"epochs": 4}, "epochs of source 'b' 3 -> 4"),
        (sources, {"lookahead": 5, "seed": 9}, "seed 0 -> 9; lookahead 65536 -> 5"),
        (sources, {"packing": "stream"}, "packing 'best_fit' -> 'stream'"),
        (sources | {"a": (folders["a"], 3.0, 1)}, {}, "share of source 'a' 1.0 -> 3.0; epochs of source 'a' 2 -> 1"),
        ({"a": sources["a"]}, {}, "source 'b' was removed"),
        (sources | {"c": folders["a"]}, {}, "source 'c' was added"),
        ({"b": sources["b"], "a": sources["a"]}, {}, "the order of the sources a, b -> b, a"),
        (sources | {"b": (copied, 2.0)}, {}, None),
    ]
    for folders_now, changes, message in other:
        loader = cwm.PackedLoader(folders_now, **options | changes)
        if message is None:
            loader.load_state_dict(state)  # the same content in another folder
            continue
        with pytest.raises(ValueError, match=message):
            loader.load_state_dict(state)
    with cwm.ShardWriter(folders["b"], VOCAB_SIZE, append=True, shard_tokens=20) as writer:
        writer.add([1, 2, 3])
    with pytest.raises(ValueError, match=r"source 'b': files were added \(\+1 files, \+1 documents\)"):
        cwm.PackedLoader(sources, **options).load_state_dict(state)


@pytest.mark.parametrize("state", [None, "x", [], 3])
def test_what_is_not_a_state_is_refused(tmp_path, state):
    loader = cwm.PackedLoader(write(tmp_path, {"a": [([1, 2], None)]}), 8)
    with pytest.raises(TypeError, match=rf"expected the mapping from state_dict\(\), got {type(state).__name__}$"):
        loader.load_state_dict(state)
    with pytest.raises(ValueError, match="'version' is missing from the state"):
        loader.load_state_dict({})


def test_changed_buckets_are_shown_as_they_were_given(tmp_path):
    folder = write(tmp_path, {"a": [([1, 2], None)]})
    state = cwm.PackedLoader(folder, 8, buckets=[Bucket(4, 1), Bucket(None, 2)]).state_dict()
    with pytest.raises(ValueError, match=r"\[max_length=4 [^,]*, max_length=None [^,]*\] -> seq_len=8 batch_size=3"):
        cwm.PackedLoader(folder, 8, batch_size=3).load_state_dict(state)


def test_relative_folders_survive_a_change_of_the_working_directory(tmp_path, monkeypatch):
    write(tmp_path, {"a": [([i, i], None) for i in range(1, 200)]})
    monkeypatch.chdir(tmp_path)
    loader, shards = cwm.PackedLoader("a", 8, epochs=1), cwm.Shards("a")
    expected = [batch.tokens.tolist() for batch in cwm.PackedLoader({"data": "a"}, 8, epochs=1)]
    writer = cwm.ShardWriter("new", 10)
    writer.add([1])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    writer.close()
    assert len(cwm.Shards(tmp_path / "new")) == 1
    copy = pickle.loads(pickle.dumps(loader))
    assert [batch.tokens.tolist() for batch in copy] == [batch.tokens.tolist() for batch in loader] == expected
    assert len(pickle.loads(pickle.dumps(shards))) == 199


@pytest.mark.parametrize("name", ["._00000.cwmtok", ".00007.cwmtok", ".DS_Store", ".cwmtok"])
def test_hidden_files_are_ignored(tmp_path, name):
    sources = folders_of(tmp_path, {"a": [([1, 2], None)]})
    Path(sources["a"], name).write_bytes(b"what a system left here")
    assert len(cwm.Shards(sources["a"])) == 1
    with cwm.ShardWriter(sources["a"], VOCAB_SIZE, append=True) as writer:
        writer.add([3])
    assert len(cwm.Shards(sources["a"])) == 2


def test_the_state_of_a_loader_made_with_integers_of_numpy_is_json(tmp_path):
    with cwm.ShardWriter(tmp_path / "a", 10) as writer:
        for _ in range(9):
            writer.add([1, 2, 3])
    sizes = {"batch_size": 2, "seed": 3, "lookahead": 100, "rank": 0, "world_size": 1, "prefetch": 1}
    plain = cwm.PackedLoader(tmp_path / "a", 8, **sizes)
    loader = cwm.PackedLoader(tmp_path / "a", np.int64(8), **{name: np.int64(size) for name, size in sizes.items()})
    next(plain), next(loader)
    assert json.loads(json.dumps(loader.state_dict())) == json.loads(json.dumps(plain.state_dict()))
    assert loader.skip(np.int64(1)) == plain.skip(1) == 1
