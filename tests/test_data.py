"""The packed loader against plain Python, and its resumption on other world sizes."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.data import describe
from hypothesis import given, settings
from hypothesis import strategies as st

VOCAB_SIZE = 1 << 20


@st.composite
def corpora(draw):
    """Sources of documents (ids, mask or None). All ids differ, so that an id tells its document and its place."""
    corpus, next_id = {}, 0
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)):
        documents = []
        for length in draw(st.lists(st.integers(1, 50), min_size=1, max_size=25)):
            mask = draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length))
            documents.append((list(range(next_id, next_id + length)), mask))
            next_id += length
        corpus[name] = documents
    return corpus


def write(folder, corpus, shard_tokens=60):
    """Write the corpus, one folder a source, and return the loader's sources."""
    for name, documents in corpus.items():
        with cwm.ShardWriter(Path(folder, name), VOCAB_SIZE, shard_tokens=shard_tokens) as writer:
            for ids, mask in documents:
                writer.add(np.array(ids, dtype=np.int32), mask, source=name)
    return {name: (Path(folder, name), 1.0 + i) for i, name in enumerate(corpus)}


def content(batch):
    """Everything in a batch that does not depend on how the ranks share it, as lists."""
    lengths = np.diff(batch.cu_seqlens).tolist()
    arrays = (batch.tokens, batch.targets, batch.loss_mask, batch.position_ids)
    return [*(array.tolist() for array in arrays), lengths, batch.source_ids.tolist(), batch.padding]


def gather(parts):
    """One global batch from the ranks' parts."""
    parts = [content(part) for part in parts]
    return [sum(field, start=field[0] * 0) for field in zip(*parts, strict=True)]


def check_batch(batch, corpus, seq_len):
    """Compare every position with the documents; return the pieces as (source, first id, length)."""
    documents = {ids[0]: (name, ids, mask) for name, docs in corpus.items() for ids, mask in docs}
    start_of = {token: ids[0] for _, ids, _ in documents.values() for token in ids}
    names = list(corpus)
    tokens, targets, masks, positions = (
        array.ravel().tolist() for array in (batch.tokens, batch.targets, batch.loss_mask, batch.position_ids)
    )
    pieces, padding = [], 0
    assert batch.cu_seqlens[0] == 0 and batch.cu_seqlens[-1] == len(tokens)
    for begin, end, source in zip(batch.cu_seqlens, batch.cu_seqlens[1:], batch.source_ids, strict=False):
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
        assert offset % seq_len == 0 and (end - begin == seq_len or offset + end - begin == len(ids))
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


@settings(max_examples=60, deadline=None)
@given(
    corpus=corpora(),
    seq_len=st.integers(1, 40),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 2**64 - 1),
    epochs=st.integers(1, 3),
    lookahead=st.integers(1, 20),
)
def test_batches_equal_the_documents(corpus, seq_len, batch_size, seed, epochs, lookahead):
    with tempfile.TemporaryDirectory() as folder:
        sources = write(folder, corpus)
        loader = cwm.PackedLoader(
            sources, seq_len, batch_size=batch_size, seed=seed, epochs=epochs, lookahead=lookahead
        )
        seen = []
        for batch in loader:
            assert batch.tokens.shape == (batch_size, seq_len)
            seen += [token for _, first, n in check_batch(batch, corpus, seq_len) for token in range(first, first + n)]
        expected = [token for documents in corpus.values() for ids, _ in documents for token in ids]
        assert sorted(seen) == sorted(expected * epochs)
        stats = loader.stats()
        assert stats["tokens"] == len(expected) * epochs
        assert stats["documents"] == sum(map(len, corpus.values())) * epochs
        assert stats["efficiency"] == pytest.approx(stats["tokens"] / (stats["steps"] * batch_size * seq_len))
        assert stats["source_tokens"] == {
            name: epochs * sum(len(ids) for ids, _ in documents) for name, documents in corpus.items()
        }


@settings(max_examples=60, deadline=None)
@given(
    corpus=corpora(),
    seq_len=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    epochs=st.none() | st.integers(1, 3),
    lookahead=st.integers(1, 20),
    stops=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 3, 4, 6, 12])), max_size=4),
)
def test_resuming_on_any_world_size_equals_one_uninterrupted_rank(corpus, seq_len, seed, epochs, lookahead, stops):
    steps = 25
    with tempfile.TemporaryDirectory() as folder:
        sources = write(folder, corpus)

        def loaders(world_size, state=None):
            options = {"batch_size": 12, "seed": seed, "epochs": epochs, "lookahead": lookahead}
            ranks = [
                cwm.PackedLoader(sources, seq_len, rank=rank, world_size=world_size, **options)
                for rank in range(world_size)
            ]
            for rank in ranks if state else []:
                rank.load_state_dict(json.loads(state))
            return ranks

        whole = loaders(1)[0]
        expected = [content(batch) for _, batch in zip(range(steps), whole, strict=False)]
        got, state = [], None
        for count, world_size in [*stops, (steps, 1)]:
            ranks = loaders(world_size, state)
            for _ in range(min(count, steps - len(got))):
                parts = [next(rank, None) for rank in ranks]
                if parts[0] is None:
                    assert parts == [None] * world_size
                    break
                got.append(gather(parts))
            states = {json.dumps(rank.state_dict()) for rank in ranks}
            assert len(states) == 1
            state = states.pop()
        assert got == expected
        assert json.loads(state) == whole.state_dict()
        assert ranks[0].stats() == whole.stats()


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
    loader = cwm.PackedLoader(tmp_path, 8192, epochs=1, lookahead=256)
    assert max(len(json.dumps(loader.state_dict())) for _ in loader) < 5000
    assert loader.stats()["efficiency"] > 0.99


def test_the_seed_decides_the_order_and_each_epoch_has_its_own(tmp_path):
    sources = write(tmp_path, {"a": [([i], None) for i in range(1, 101)]})

    def order(seed):
        loader = cwm.PackedLoader(sources, seq_len=100, seed=seed, lookahead=1, epochs=2)
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
        # A source is off by a document at most, and the look-ahead holds eight.
        assert abs(stats["source_tokens"][name] - share * stats["tokens"]) < 9 * 40


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
        ({"sources": {"a": ("a", 0.0)}}, 'source "a": a share must be positive, not 0'),
        ({"sources": {"a": ("a", float("nan"))}}, "must be positive"),
        ({"sources": {"a": ("a", 1.0), "b": ("small", 1.0)}}, '"b" has a vocabulary of 16'),
        ({"sources": "empty"}, "no token shards"),
        ({"batch_size": 4, "world_size": 3}, "world_size 3 does not divide batch_size 4"),
        ({"rank": 1}, "rank 1 is outside a world of 1"),
        ({"rank": -1}, "rank must not be negative"),
        ({"seq_len": 0}, "must be at least 1"),
        ({"lookahead": 257}, "lookahead must be 1 to 256"),
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
    with pytest.raises(ValueError, match="seed = 1, this loader 2"):
        cwm.PackedLoader(sources, seq_len=16, seed=2).load_state_dict(state)
    corpus["a"][3][0][4] += 1
    with pytest.raises(ValueError, match="data ="):
        cwm.PackedLoader(write(tmp_path / "two", corpus), seq_len=16, seed=1).load_state_dict(state)
    for broken in (
        {key: value for key, value in state.items() if key != "cursors"},
        {**state, "cursors": [["x", 0, 0]]},
        {**state, "cursors": []},
        {**state, "cursors": [[0, 99, 0]]},
        {**state, "step": -1},
        {**state, "waiting": [[0, 10**6, 0]]},
        {**state, "waiting": state["waiting"] + state["waiting"][:1]},
    ):
        with pytest.raises(ValueError, match="loader state"):
            loader.load_state_dict(broken)
        assert loader.state_dict() == state


def test_damage_under_a_running_loader_is_an_error_that_skips_nothing(tmp_path):
    write(tmp_path, {"a": [(list(range(1, 2001)), None)]}, shard_tokens=10_000)
    loader = cwm.PackedLoader(tmp_path / "a", seq_len=500)
    first = next(loader)
    state = loader.state_dict()
    path = tmp_path / "a" / "00000.cwmtok"
    intact = path.read_bytes()
    with path.open("r+b") as file:  # in place: the loader has this file mapped
        file.seek(4096 + 3000)
        file.write(b"\xff")
    with pytest.raises(ValueError, match=r"00000\.cwmtok: damaged tokens at byte 4096"):
        next(loader)
    assert loader.state_dict() == state
    with path.open("r+b") as file:
        file.write(intact)
    assert next(loader).tokens[0, 0] == first.tokens[0, -1] + 1


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


def test_describe(tmp_path):
    with cwm.ShardWriter(tmp_path, 100, shard_tokens=20) as writer:
        for length, source in [(10, "x"), (20, "y"), (30, "x"), (4, "z")]:
            writer.add(np.zeros(length, dtype=np.int32), source=source)
    assert describe(tmp_path) == {
        "tokens": 64,
        "documents": 4,
        "vocab_size": 100,
        "mean_length": 16.0,
        "median_length": 15.0,
        "max_length": 30,
        "sources": {
            "x": {"tokens": 40, "documents": 2, "share": 0.625},
            "y": {"tokens": 20, "documents": 1, "share": 0.3125},
            "z": {"tokens": 4, "documents": 1, "share": 0.0625},
        },
    }
