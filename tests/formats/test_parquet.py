"""Importing Parquet: every row a document, whatever its type, and again after an interruption."""

import os
import tempfile
from itertools import chain
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.formats import parquet
from cwm_core.formats.parquet import import_parquet
from hypothesis import given, settings
from hypothesis import strategies as st

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

INTEGERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def save(path, columns, kinds=None, **options):
    """Write columns of Python values, of the types that are given."""
    kinds = kinds or {}
    arrays = {name: pa.array(values, kinds.get(name)) for name, values in columns.items()}
    pq.write_table(pa.table(arrays), path, **options)
    return path


def read(folder):
    """Ids, mask and source of every document."""
    return [(d.tokens.tolist(), d.loss_mask.tolist(), d.source) for d in cwm.Shards(folder)]


@st.composite
def tables(draw):
    """Columns with their types, and the documents that they must become."""
    rows = draw(st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=30))
    if draw(st.booleans()):
        rows = [[*row, 7, 8, 9][:3] for row in rows]
        as_list = draw(st.sampled_from([pa.list_, pa.large_list, lambda kind: pa.list_(kind, 3)]))
    else:
        as_list = draw(st.sampled_from([pa.list_, pa.large_list]))
    columns = {"input_ids": rows}
    kinds = {"input_ids": as_list(draw(st.sampled_from(INTEGERS)))}
    masks = [[True] * len(row) for row in rows]
    kept = [len(row) for row in rows]
    if draw(st.booleans()):
        chosen = [[draw(st.booleans()) for _ in row] for row in rows]
        columns["loss_mask"] = chosen
        kinds["loss_mask"] = as_list(draw(st.sampled_from([pa.bool_(), pa.int8(), pa.int64()])))
        masks = chosen
    if draw(st.booleans()):
        chosen = [[draw(st.booleans()) for _ in row] for row in rows]
        labels = zip(rows, chosen, strict=True)
        columns["labels"] = [[id if learn else -100 for id, learn in zip(*row, strict=True)] for row in labels]
        kinds["labels"] = as_list(draw(st.sampled_from([pa.int8(), pa.int32(), pa.int64()])))
        masks = [[a and b for a, b in zip(*row, strict=True)] for row in zip(masks, chosen, strict=True)]
    if draw(st.booleans()):
        kept = [draw(st.integers(0, len(row))) for row in rows]
        columns["attention_mask"] = [[i < n for i in range(len(row))] for row, n in zip(rows, kept, strict=True)]
        kinds["attention_mask"] = as_list(draw(st.sampled_from([pa.bool_(), pa.int64()])))
    for name in ("loss_mask", "attention_mask"):
        if name in columns and not pa.types.is_boolean(kinds[name].value_type):
            columns[name] = [list(map(int, row)) for row in columns[name]]
    sources = [""] * len(rows)
    if draw(st.booleans()):
        sources = [draw(st.sampled_from(["a", "é", ""])) for _ in rows]
        columns["where"] = sources
        kinds["where"] = draw(st.sampled_from([pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]))
    documents = zip(rows, masks, kept, sources, strict=True)
    return columns, kinds, [(row[:n], mask[:n], source) for row, mask, n, source in documents if n]


@settings(max_examples=60, deadline=None)
@given(table=tables(), group=st.integers(1, 40), batch=st.integers(1, 20), cut=st.integers(0, 30))
def test_every_row_is_a_document(table, group, batch, cut):
    columns, kinds, expected = table
    rows = len(columns["input_ids"])
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "_ROWS", batch)
        parts = [slice(0, cut), slice(cut, None)]
        files = [
            save(f"{folder}/{i}.parquet", {name: x[part] for name, x in columns.items()}, kinds, row_group_size=group)
            for i, part in enumerate(parts)
        ]
        seen = []
        done = import_parquet(
            files,
            f"{folder}/shards",
            100,
            source="where" if "where" in columns else None,
            progress=lambda *numbers: seen.append(numbers),
        )
        assert seen[-1] == (rows, rows) and seen == sorted(seen)
        tokens = sum(len(ids) for ids, *_ in expected)
        assert done == parquet.ImportResult(len(expected), tokens, len(expected), tokens, rows - len(expected))
        if expected:
            assert read(f"{folder}/shards") == expected


def test_a_slice_of_a_table_is_read(tmp_path):
    """Arrow's offsets need not begin at 0."""
    ids = pa.array([[1], [2, 3], [4, 5, 6], [7]], pa.list_(pa.int32()))[1:3]
    batch = pa.record_batch({"input_ids": ids, "labels": pa.array([[0], [2, -100], [4, 5, 6], [7]])[1:3]})
    lists = {name: parquet._List("x", 0, name, batch.column(name)) for name in ("input_ids", "labels")}
    rows = parquet._rows("x", 0, lists, "input_ids", None)
    assert rows.ids.tolist() == [2, 3, 4, 5, 6] and rows.offsets.tolist() == [0, 2, 5]
    assert rows.mask.tolist() == [True, False, True, True, True]


def test_an_interrupted_import_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS", 7)
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 1000, rng.integers(0, 9)).tolist() for _ in range(500)]
    files = [save(tmp_path / f"{i}.parquet", {"input_ids": rows[i : i + 100]}) for i in range(0, 500, 100)]
    full = [row for row in rows if row]

    class Interrupted(Exception):
        pass

    def interrupt_at(row):
        def progress(done, total):
            if done >= row:
                raise Interrupted

        return progress

    stored = 0
    for row in (150, 300, 430):
        with pytest.raises(Interrupted):
            import_parquet(files, tmp_path / "shards", 1000, shard_tokens=100, progress=interrupt_at(row))
        assert len(cwm.Shards(tmp_path / "shards")) > stored
        stored = len(cwm.Shards(tmp_path / "shards"))
    done = import_parquet(files, tmp_path / "shards", 1000, shard_tokens=100)
    assert (done.documents, done.new_documents) == (len(full), len(full) - stored)
    assert [ids for ids, *_ in read(tmp_path / "shards")] == full
    again = import_parquet(files, tmp_path / "shards", 1000)
    assert (again.documents, again.new_documents, again.empty_rows) == (len(full), 0, 500 - len(full))
    with pytest.raises(ValueError, match=r"100\.parquet: row \d+: not document \d+ of the shards"):
        import_parquet(files[1:], tmp_path / "shards", 1000)
    with pytest.raises(ValueError, match=r"has \d+ more documents than the files"):
        import_parquet(files[:4], tmp_path / "shards", 1000)
    assert [ids for ids, *_ in read(tmp_path / "shards")] == full


def test_other_content_of_the_same_lengths_is_noticed(tmp_path):
    import_parquet(save(tmp_path / "a.parquet", {"input_ids": [[1, 2], [3, 4]]}), tmp_path / "shards", 10)
    with pytest.raises(ValueError, match=r"b\.parquet: row 1: not document 1 of the shards"):
        import_parquet(save(tmp_path / "b.parquet", {"input_ids": [[1, 2], [3, 5]]}), tmp_path / "shards", 10)


LISTS = pa.list_(pa.int64())


@pytest.mark.parametrize(
    ("columns", "kinds", "message"),
    [
        ({"ids": [[1]]}, {}, r"no column 'input_ids'; the file has ids"),
        ({"input_ids": [1, 2]}, {}, "column 'input_ids' must contain lists, got int64"),
        ({"input_ids": [[1.0]]}, {}, "must contain lists of integers, got lists of double"),
        ({"input_ids": [[True]]}, {}, "must contain lists of integers, got lists of bool"),
        ({"input_ids": [[1], None]}, {}, "row 1: column 'input_ids' is null"),
        ({"input_ids": [[1], [], [2, None]]}, {}, "row 2: column 'input_ids' has a null at token 1"),
        ({"input_ids": [[1], [], [2, 10]]}, {}, "row 2: token 1 has id 10, outside the vocabulary of 10"),
        ({"input_ids": [[1], [-1]]}, {}, "row 1: token 0 has id -1, outside any vocabulary"),
        (
            {"input_ids": [[1], [2**63]]},
            {"input_ids": pa.list_(pa.uint64())},
            "row 1: id 9223372036854775808 is too large for any vocabulary at token 0",
        ),
        (
            {"input_ids": [[1], [1, 2]], "labels": [[1], [1]]},
            {},
            "row 1: column 'labels' has 1 entries for 2 tokens",
        ),
        ({"input_ids": [[1], [1, 2]], "labels": [[1], [-100, 1]]}, {}, "row 1: label 1 differs from id 2 at token 1"),
        ({"input_ids": [[1], [1, 2]], "labels": [[1], [1, -1]]}, {}, "row 1: label -1 differs from id 2 at token 1"),
        ({"input_ids": [[1]], "labels": [[1.0]]}, {}, "column 'labels' must contain lists of integers"),
        ({"input_ids": [[1]], "labels": [None]}, {"labels": LISTS}, "row 0: column 'labels' is null"),
        (
            {"input_ids": [[1, 2]], "loss_mask": [[1, 2]]},
            {},
            "row 0: column 'loss_mask' must be 0 or 1, got 2 at token 1",
        ),
        (
            {"input_ids": [[1], [1, 2, 3]], "attention_mask": [[0], [0, 1, 1]]},
            {},
            "row 1: padding must be at the end: token after padding at token 1",
        ),
        ({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 0, 1]]}, {}, "row 0: padding must be at the end"),
        ({"input_ids": [[1]], "where": [3]}, {}, "column 'where' must contain strings, got int64"),
        ({"input_ids": [[1], [2]], "where": ["a", None]}, {}, "row 1: the source is null"),
    ],
)
def test_the_error_names_file_and_row(tmp_path, columns, kinds, message):
    path = save(tmp_path / "bad.parquet", columns, kinds)
    good = save(tmp_path / "good.parquet", {"input_ids": [[9]] * 3, "where": ["x"] * 3})
    with pytest.raises(ValueError, match=r"bad\.parquet: ") as caught:
        import_parquet([good, path], tmp_path / "shards", 10, source="where" if "where" in columns else None)
    assert message in str(caught.value)


def test_damaged_files_are_named(tmp_path):
    rng = np.random.default_rng(4)
    path = save(tmp_path / "bad.parquet", {"input_ids": [rng.integers(0, 10, 500).tolist() for _ in range(100)]},
                write_page_checksum=True)  # fmt: skip
    intact = path.read_bytes()
    for content in (b"", b"PAR1", intact[:-1], intact[: len(intact) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.parquet: "):
            import_parquet(path, tmp_path / "shards", 10)
    path.write_bytes(intact[:5000] + bytes([intact[5000] ^ 1]) + intact[5001:])
    with pytest.raises(cwm.DamagedFileError, match=r"bad\.parquet: damaged at row 0 or after"):
        import_parquet(path, tmp_path / "shards", 10)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        import_parquet(tmp_path / "nowhere.parquet", tmp_path / "shards", 10)
    with pytest.raises(ValueError, match="expected at least one file"):
        import_parquet([], tmp_path / "shards", 10)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_adding_many_equals_adding_each(data):
    documents = data.draw(st.lists(st.lists(st.integers(0, 70_000), min_size=1, max_size=20), max_size=30))
    masks = [[data.draw(st.booleans()) for _ in ids] for ids in documents] if data.draw(st.booleans()) else None
    tags = [data.draw(st.integers(0, 2)) for _ in documents] if data.draw(st.booleans()) else None
    dtype = data.draw(st.sampled_from([np.int32, np.uint32, np.int64]))
    with tempfile.TemporaryDirectory() as folder:
        with cwm.ShardWriter(f"{folder}/one", 70_001, shard_tokens=50) as writer:
            for i, ids in enumerate(documents):
                writer.add(ids, None if masks is None else masks[i], "xyz"[0 if tags is None else tags[i]])
        with cwm.ShardWriter(f"{folder}/many", 70_001, shard_tokens=50) as writer:
            ids, offsets = np.array(list(chain(*documents)), dtype=dtype), np.cumsum([0, *map(len, documents)])
            mask = None if masks is None else np.array(list(chain(*masks)), dtype=bool)
            writer.add_many(ids, offsets, mask, list("xyz"), tags)
        names = sorted(os.listdir(f"{folder}/one"))
        assert names == sorted(os.listdir(f"{folder}/many"))
        for name in names:
            assert Path(folder, "one", name).read_bytes() == Path(folder, "many", name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "error", "message", "added"),
    [
        (([1, 2, 128, 3], [0, 1, 3, 4]), ValueError, "token 1 has id 128, outside the vocabulary of 128", 1),
        (([1, 2, -1, 3], [0, 1, 3, 4]), ValueError, "token 1 has id -1, outside any vocabulary", 1),
        (([1, 2], [0, 1, 1, 2]), ValueError, "at least one token", 1),
        (([1, 2], [0, 3]), ValueError, "offsets must ascend from 0 to the number of ids, 2", 0),
        (([1, 2], [1, 2]), ValueError, "offsets must ascend", 0),
        (([1, 2], [0, 2, 1, 2]), ValueError, "offsets must ascend", 0),
        (([1, 2], [0, -1, 2]), ValueError, "offsets must ascend", 0),
        (([1, 2], []), ValueError, "offsets must ascend", 0),
        (([1, 2], [0, 2], [True]), ValueError, "loss_mask has 1 entries for 2 tokens", 0),
        (([1, 2], [0, 2], None, ["a"], [1]), ValueError, "source id 1 is not an index into 1 sources", 0),
        (([1, 2], [0, 2], None, ["a"], [0, 0]), ValueError, "2 source_ids for 1 documents", 0),
        (([1, 2], [0, 2], None, []), ValueError, "source id 0 is not an index into 0 sources", 0),
        (([1.0], [0, 1]), TypeError, "float64", 0),
    ],
)
def test_many_with_a_bad_one_are_added_up_to_it(tmp_path, arguments, error, message, added):
    with cwm.ShardWriter(tmp_path, 128) as writer:
        with pytest.raises(error, match=message):
            writer.add_many(*arguments)
        assert writer.documents == added
        writer.add([5])
    assert read(tmp_path)[-1] == ([5], [True], "")
