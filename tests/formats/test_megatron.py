"""Megatron's indexed datasets, against Megatron's own reader and writer where they are installed, and NumPy's."""

import os
import pickle
import struct
import tempfile
import warnings
from itertools import chain, pairwise
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.data import describe
from cwm_core.formats.megatron import MegatronWriter, write_megatron
from hypothesis import given, settings
from hypothesis import strategies as st

CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


def encode(documents, code):
    """Write the two files as the format's description has them; a document is a list of sequences."""
    sequences = [np.array(sequence, dtype=CODES[code]) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    pointers = np.array([sum(sequence.nbytes for sequence in sequences[:i]) for i in range(len(sequences))], "<i8")
    bounds = np.cumsum([0] + [len(document) for document in documents], dtype="<i8")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, len(lengths), len(bounds))
    data = b"".join(sequence.tobytes() for sequence in sequences)
    return header + lengths.tobytes() + pointers.tobytes() + bounds.tobytes(), data


def decode(prefix):
    """Read the documents and the type of ids of a dataset."""
    index = Path(f"{prefix}.idx").read_bytes()
    version, code, sequences, bounds = struct.unpack_from("<QBQQ", index, 9)
    assert index[:9] == b"MMIDIDX\0\0" and version == 1 and len(index) == 34 + 12 * sequences + 8 * bounds
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    pointers = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    bounds = np.frombuffer(index, "<i8", bounds, 34 + 12 * sequences)
    data = Path(f"{prefix}.bin").read_bytes()
    all_ids = [np.frombuffer(data, CODES[code], *where).tolist() for where in zip(lengths, pointers, strict=True)]
    return [list(chain(*all_ids[a:b])) for a, b in pairwise(bounds)], CODES[code]


def save(prefix, documents, code=4):
    for extension, content in zip((".idx", ".bin"), encode(documents, code), strict=True):
        Path(f"{prefix}{extension}").write_bytes(content)
    return prefix


@pytest.fixture
def oracle():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that Megatron would like to have
        return pytest.importorskip("megatron.core.datasets.indexed_dataset", exc_type=ImportError)


def corpora(vocab_size):
    return st.lists(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=60), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), code=st.sampled_from(list(CODES)))
def test_the_documented_format_is_read(data, code):
    top = min(np.iinfo(CODES[code]).max, 2**31 - 1)
    sequences = st.lists(st.lists(st.integers(0, top), max_size=20), max_size=3)
    documents = data.draw(st.lists(sequences, min_size=1, max_size=12).filter(lambda all: any(map(any, all))))
    full = [list(chain(*document)) for document in documents if any(document)]
    with tempfile.TemporaryDirectory() as folder:
        shards = cwm.Shards(save(f"{folder}/text_document", documents, code))
        shards.verify()
        assert [document.tokens.tolist() for document in shards] == full
        assert all(document.loss_mask.all() and document.spans == {} for document in shards)
        assert shards.lengths.tolist() == [len(document) for document in full]
        assert (shards.tokens, shards.vocab_size) == (sum(map(len, full)), None)
        assert (shards.sources, shards.labels) == ([""], [])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), vocab_size=st.sampled_from([1, 300, 65_499, 65_500, 65_536, 128_256, 2**31]))
def test_written_files_follow_the_documented_format(data, vocab_size):
    documents = data.draw(corpora(vocab_size))
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder, "new", "text_document")
        with MegatronWriter(prefix, vocab_size) as writer:
            for ids in documents:
                writer.add(np.array(ids, dtype=data.draw(st.sampled_from([np.int32, np.int64, np.uint32]))))
            assert (writer.documents, writer.tokens) == (len(documents), sum(map(len, documents)))
            assert not any(path.exists() for path in (prefix.with_suffix(".bin"), prefix.with_suffix(".idx")))
        assert decode(prefix) == (documents, "<u2" if vocab_size < 65_500 else "<i4")
        assert sorted(os.listdir(prefix.parent)) == ["text_document.bin", "text_document.idx"]


def test_megatrons_own_reader_reads_written_files(oracle, tmp_path):
    rng = np.random.default_rng(1)
    for vocab_size in (65_499, 65_500, 128_256):
        documents = [rng.integers(0, vocab_size, rng.integers(1, 3000)) for _ in range(300)]
        with MegatronWriter(tmp_path / str(vocab_size), vocab_size) as writer:
            for ids in documents:
                writer.add(ids)
        read = oracle.IndexedDataset(str(tmp_path / str(vocab_size)))
        assert read.index.dtype == oracle.DType.optimal_dtype(vocab_size)
        assert read.document_indices.tolist() == list(range(301))
        assert all(np.array_equal(read[i], ids) for i, ids in enumerate(documents))


def test_files_of_megatrons_own_writer_are_read(oracle, tmp_path):
    rng = np.random.default_rng(2)
    torch = pytest.importorskip("torch")
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
        prefix, expected = str(tmp_path / np.dtype(dtype).name), []
        builder = oracle.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
        for _ in range(200):
            lengths = rng.integers(0, 40, rng.integers(1, 4)).tolist()
            ids = rng.integers(0, np.iinfo(dtype).max // 2 % 2**30, sum(lengths))
            builder.add_document(torch.tensor(ids), lengths)
            expected += [ids.tolist()] if len(ids) else []
        builder.finalize(f"{prefix}.idx")
        shards = cwm.Shards(prefix)
        shards.verify()
        assert [document.tokens.tolist() for document in shards] == expected


def batches(loader):
    names = ("tokens", "targets", "loss_mask", "position_ids", "cu_seqlens", "source_ids", "document_ids")
    return [[getattr(batch, name).tolist() for name in names] for batch in loader]


@settings(max_examples=60, deadline=None)
@given(
    documents=corpora(300),
    others=corpora(300),
    seed=st.integers(0, 2**64 - 1),
    packing=st.sampled_from(["best_fit", "stream"]),
    seq_len=st.integers(1, 80),
    stop=st.integers(0, 20),
)
def test_the_loader_yields_the_same_batches_as_from_shards(documents, others, seed, packing, seq_len, stop):
    with tempfile.TemporaryDirectory() as folder:
        with (
            MegatronWriter(f"{folder}/indexed", 300) as indexed,
            cwm.ShardWriter(f"{folder}/shards", 300) as shards,
            cwm.ShardWriter(f"{folder}/others", 300) as rest,
        ):
            for ids in documents:
                indexed.add(ids)
                shards.add(ids)
            for ids in others:
                rest.add(ids)

        def loader(path):
            sources = {"web": (f"{folder}/{path}", 0.5), "traces": (f"{folder}/others", 0.5)}
            return cwm.PackedLoader(sources, seq_len, seed=seed, packing=packing, batch_size=2, lookahead=8, epochs=2)

        assert loader("indexed").vocab_size == 300
        expected = batches(loader("shards"))
        assert batches(loader("indexed")) == expected
        first, second = loader("indexed"), loader("indexed")
        first.skip(stop)
        second.load_state_dict(first.state_dict())
        assert batches(second) == expected[stop:]


def test_shards_become_a_dataset(tmp_path):
    with cwm.ShardWriter(tmp_path / "shards", 300) as writer:
        writer.add([1, 2, 3], source="a", spans={"x": [[0, 1]]})
        writer.add([4])
    assert write_megatron(tmp_path / "text_document", cwm.Shards(tmp_path / "shards")) == 2
    assert decode(tmp_path / "text_document") == ([[1, 2, 3], [4]], "<u2")
    with pytest.raises(FileExistsError, match=r"text_document\.bin exists already"):
        write_megatron(tmp_path / "text_document", cwm.Shards(tmp_path / "shards"))
    with pytest.raises(ValueError, match="the vocabulary is unknown"):
        write_megatron(tmp_path / "again", cwm.Shards(tmp_path / "text_document"))
    assert write_megatron(tmp_path / "again", cwm.Shards(tmp_path / "text_document", vocab_size=70_000)) == 2
    assert decode(tmp_path / "again") == ([[1, 2, 3], [4]], "<i4")


def test_masks_are_not_lost_unasked(tmp_path):
    with cwm.ShardWriter(tmp_path / "shards", 300) as writer:
        writer.add([1])
        writer.add([2, 3], [True, False])
    with pytest.raises(ValueError, match="document 1 has tokens outside the loss"):
        write_megatron(tmp_path / "new", cwm.Shards(tmp_path / "shards"))
    assert os.listdir(tmp_path) == ["shards"]
    assert write_megatron(tmp_path / "new", cwm.Shards(tmp_path / "shards"), drop_masks=True) == 2


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 128], ValueError, "token 1 has id 128, outside the vocabulary of 128"),
        ([-1], ValueError, "token 0 has id -1"),
        ([], ValueError, "1 to 2147483647 tokens, got 0"),
        ([[1]], ValueError, "one dimension"),
        ([1.0], TypeError, "float64"),
    ],
)
def test_a_bad_document_is_refused_and_changes_nothing(tmp_path, ids, error, message):
    with MegatronWriter(tmp_path / "new", 128) as writer:
        writer.add([1])
        with pytest.raises(error, match=message):
            writer.add(ids)
        writer.add([2])
    assert decode(tmp_path / "new")[0] == [[1], [2]]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), MegatronWriter(tmp_path / "new", 128) as writer:
        writer.add(np.zeros(1_000_000, dtype=np.int32))
        raise RuntimeError
    MegatronWriter(tmp_path / "new", 128).add([1])
    assert os.listdir(tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        writer.add([1])
    for vocab_size in (0, -1, 2**31 + 1):
        with pytest.raises(ValueError, match="vocab_size must"):
            MegatronWriter(tmp_path / "new", vocab_size)


def test_a_fork_leaves_the_files_of_its_parent_alone(tmp_path):
    writer = MegatronWriter(tmp_path / "new", 128)
    writer.add([1])
    if not (child := os.fork()):
        writer.discard()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.close()
    assert decode(tmp_path / "new")[0] == [[1]]


def test_the_vocabulary_comes_from_another_source_or_the_caller(tmp_path):
    prefix = save(tmp_path / "web", [[[1, 200]]])
    with cwm.ShardWriter(tmp_path / "traces", 200) as writer:
        writer.add([1])
    known = {"web": (prefix, 0.5), "traces": (tmp_path / "traces", 0.5)}
    wrong = r"web\.bin: token 1 of document 0 has id 200, outside the vocabulary of 200"
    for loader in (cwm.PackedLoader(known, 8), cwm.PackedLoader(prefix, 8, vocab_size=200)):
        assert loader.vocab_size == 200
        with pytest.raises(ValueError, match=wrong):
            next(loader)
    assert cwm.PackedLoader(prefix, 8).vocab_size is None
    assert next(cwm.PackedLoader(prefix, 8)).tokens[0, :2].tolist() == [1, 200]
    with pytest.raises(ValueError, match="traces: the shards have a vocabulary of 200 ids, not 201"):
        cwm.PackedLoader(known, 8, vocab_size=201)
    with pytest.raises(ValueError, match=wrong):
        cwm.Shards(prefix, vocab_size=200).verify()
    cwm.Shards(prefix, vocab_size=201).verify()
    assert pickle.loads(pickle.dumps(cwm.Shards(prefix, vocab_size=201))).vocab_size == 201
    assert describe(prefix).vocab_size is None


def test_a_state_is_of_its_data(tmp_path):
    prefix = save(tmp_path / "web", [[[i, i + 1]] for i in range(20)])
    loader = cwm.PackedLoader(prefix, 8)
    next(loader)
    state = loader.state_dict()
    cwm.PackedLoader(prefix, 8).load_state_dict(state)
    save(prefix, [[[i, i + 2]] for i in range(20)])
    with pytest.raises(ValueError, match="source 'data': the content of files"):
        cwm.PackedLoader(prefix, 8).load_state_dict(state)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("extension", [".idx", ".bin"])
def test_a_cut_under_a_running_loader_is_an_error_that_skips_nothing(tmp_path, extension, prefetch):
    prefix = save(tmp_path / "web", [[list(range(i, i + 50))] for i in range(0, 100_000, 50)])
    loader = cwm.PackedLoader(prefix, 500, packing="stream", prefetch=prefetch)
    twin = cwm.PackedLoader(prefix, 500, packing="stream")
    path = Path(f"{prefix}{extension}")
    intact, given = path.read_bytes(), [next(loader).tokens.tolist()]
    with path.open("r+b") as file:  # in place: the loader has this file mapped
        file.truncate(4096)
    with pytest.raises(ValueError, match=rf"web\{extension}: truncated to 4096 bytes while open"):
        for batch in loader:
            given.append(batch.tokens.tolist())
    with path.open("r+b") as file:
        file.write(intact)
    given.append(next(loader).tokens.tolist())
    assert given == [next(twin).tokens.tolist() for _ in given]


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cwm.Shards(tmp_path / "nowhere")
    for missing in (".idx", ".bin"):
        save(tmp_path / "web", [[[1]]])
        (tmp_path / f"web{missing}").unlink()
        with pytest.raises(FileNotFoundError, match=rf"web\{missing}"):
            cwm.Shards(tmp_path / "web")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hostile_files_are_refused_or_read(data):
    files = [bytearray(content) for content in encode([[[1, 2], [3]], [[]], [[4, 5, 6]]], 4)]
    for _ in range(data.draw(st.integers(1, 4))):
        file = files[data.draw(st.integers(0, 1))]
        if file and data.draw(st.booleans()):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        else:
            del file[data.draw(st.integers(0, len(file))) :]
    with tempfile.TemporaryDirectory() as folder:
        for extension, content in zip((".idx", ".bin"), files, strict=True):
            Path(f"{folder}/web{extension}").write_bytes(content)
        try:
            assert sum(len(document.tokens) for document in cwm.Shards(f"{folder}/web")) > 0
        except ValueError as error:
            assert str(error).startswith(f"{folder}/web.")
