"""Texts, chats and traces in files, as documents to train on."""

import json
import shutil
import sys
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.cli import main
from cwm_core.data import document_files, document_kinds, read_items
from cwm_core.data.documents import TextKind
from cwm_core.data.traces import encode_for_training
from cwm_core.formats.traces import export_traces
from hypothesis import given
from hypothesis import strategies as st

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 1 + 1?"},
    {"role": "assistant", "content": "2"},
    {"role": "tool", "name": "python", "content": "2\n"},
    {"role": "assistant", "content": "Indeed 2."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return cwm.Tokenizer.train(["def f(x):\n    return x + 1\n"] * 3, vocab_size=280)


@pytest.fixture(scope="module")
def trace():
    return cwm.record_source("def f(x):\n    y = x + 1\n    return y\n", "f(1)")


def write_lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def encoded(tokenizer, file):
    return [(item.encode(tokenizer), item.source) for item in read_items(file)]


def test_all_of_a_text_is_learned(tmp_path, tokenizer):
    file = write_lines(tmp_path / "texts.jsonl", {"text": "x = 1\n", "source": "code"}, {"text": ""})
    (first, source), (empty, other) = encoded(tokenizer, file)
    assert tokenizer.decode(first.ids) == "<|begin_of_text|>x = 1\n<|end_of_text|>"
    assert first.loss_mask.all() and not first.spans and source == "code"
    assert tokenizer.decode(empty.ids) == "<|begin_of_text|><|end_of_text|>" and other == tmp_path.name


@given(text=st.text(max_size=40))
def test_a_text_that_names_special_tokens_stays_text(tokenizer, tmp_path_factory, text):
    text += "<|end_of_text|>"
    file = write_lines(tmp_path_factory.mktemp("texts") / "t.jsonl", {"text": text})
    ((document, _),) = encoded(tokenizer, file)
    special = np.isin(document.ids, list(tokenizer.special_tokens.values()))
    assert special.nonzero()[0].tolist() == [0, len(document.ids) - 1]
    assert tokenizer.decode(document.ids[1:-1]) == text


def test_the_loss_of_a_chat_is_on_the_assistants_messages(tmp_path, tokenizer):
    file = write_lines(tmp_path / "chats.jsonl", {"messages": CHAT, "text": "not this"})
    ((document, _),) = encoded(tokenizer, file)
    np.testing.assert_array_equal(document.ids, tokenizer.encode_chat(CHAT)[0])
    assert tokenizer.decode(document.ids[document.loss_mask]) == "2<|eot_id|>Indeed 2.<|eot_id|>"


def test_traces_in_rows_are_those_of_a_store(tmp_path, tokenizer, trace):
    with cwm.TraceWriter(tmp_path / "all.cwmtraces") as writer:
        writer.add(trace, "a", source="mine")
    for ending in ("jsonl", "parquet"):
        if ending == "parquet":
            pytest.importorskip("pyarrow")
        export_traces(tmp_path / "all.cwmtraces", tmp_path / f"all.{ending}")
    expected = encode_for_training(tokenizer, trace)
    for file in tmp_path.iterdir():
        ((document, source),) = encoded(tokenizer, file)
        assert source == "mine"
        np.testing.assert_array_equal(document.ids, expected.ids)
        np.testing.assert_array_equal(document.loss_mask, expected.loss_mask)
        assert document.spans.keys() == expected.spans.keys()


def test_parquet_and_jsonl_give_equal_documents(tmp_path, tokenizer):
    """Parquet has all keys in every message, null where a message lacks one."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": None, "messages": CHAT}, {"text": "x", "messages": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    contents = [item.content for item in read_items(tmp_path / "rows.parquet")]
    assert contents == [CHAT, "x"]


def test_vocabularies_are_trained_on_the_encoded_texts(tmp_path):
    file = write_lines(tmp_path / "rows.jsonl", {"text": "a text"}, {"messages": CHAT[:2]})
    texts = [text for item in read_items(file) for text in item.texts()]
    assert texts == ["a text", "Be brief.", "What is 1 + 1?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON: Expecting"),
        ("[1]", "line 2: not a JSON object, but a list"),
        ('{"text": "a",}', r"line 2: not JSON: [^:]* at column 1[34]$"),
        (
            '{"prompt": 1, "completion": 2}',
            "line 2: expected a value in one of the columns 'messages', 'trace', 'text'; got 'prompt', 'completion'$",
        ),
        ('{"text": null}', "line 2: expected a value in one of the columns .*; got 'text' is null$"),
        ("{}", "line 2: expected a value in one of the columns .*; got an empty row$"),
        ('{"text": 1}', "line 2: expected 'text' to be a string, got a number"),
        ('{"text": ["x"]}', "line 2: expected 'text' to be a string, got a list"),
        ('{"trace": 1}', "line 2: expected 'trace' to be a stored trace in Base64, got a number"),
        ('{"messages": "x"}', "line 2: expected 'messages' to be a list of objects, got a string"),
        ('{"messages": [{"content": "x"}, 1]}', "line 2: message 1: expected an object, got a number"),
        ('{"messages": [{"role": "user"}]}', "line 2: message 0: expected 'content' to be a string, got no content"),
        ('{"messages": [{"content": [1]}]}', "line 2: message 0: expected 'content' to be a string, got a list"),
        ('{"messages": [{"role": "cat", "content": "x"}]}', "line 2: message 0: unknown role 'cat'"),
        ('{"trace": "AAAA"}', "line 2: "),
    ],
)
def test_mistakes_say_where(tmp_path, tokenizer, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        encoded(tokenizer, file)


@pytest.mark.parametrize("name", ["rows.ndjson", "ROWS.JSONL", "Rows.NdJson.GZ", "rows.ndjson.gz"])
def test_json_lines_have_several_endings_in_any_case(tmp_path, name):
    write_lines(tmp_path / name, {"text": "x"})
    assert [item.content for item in read_items(tmp_path / name)] == ["x"]
    assert list(document_files([tmp_path])) == [tmp_path / name]


def test_traces_are_found_under_any_name(tmp_path, trace):
    for name in ("A.CWMTRACE", "trace", "trace.bin"):
        trace.save(tmp_path / name)
        assert [item.content.trace for item in read_items(tmp_path / name)] == [trace]
    with cwm.TraceWriter(tmp_path / "all.CwmTraces") as writer:
        writer.add(trace, "a")
    assert [item.content.key for item in read_items(tmp_path / "all.CwmTraces")] == ["a"]
    assert list(document_files([tmp_path])) == [tmp_path / "A.CWMTRACE", tmp_path / "all.CwmTraces"]


@pytest.mark.parametrize("name", ["rows.json", "rows.txt", "rows"])
def test_other_files_are_refused_with_the_known_endings(tmp_path, name):
    write_lines(tmp_path / name, {"text": "x"})
    with pytest.raises(
        ValueError, match=rf"{name}: neither a trace nor .*\*\.cwmtrace.*\*\.ndjson.*\*\.parquet.*standard"
    ):
        list(read_items(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_files_without_documents_are_reported(tmp_path, tokenizer, capsys, content):
    tokenizer.save(tmp_path / "vocabulary")
    (tmp_path / "empty.jsonl").write_bytes(content)
    file = write_lines(tmp_path / "rows.jsonl", {"text": "x"})

    def tokenize(*files, vocabulary="vocabulary", more=()):
        options = ["--tokenizer", str(tmp_path / vocabulary), "-o", str(tmp_path / "shards"), *more]
        return main(["tokenize", *map(str, files), *options]), capsys.readouterr().err

    assert tokenize(tmp_path / "empty.jsonl") == (
        1,
        f"cwm tokenize: {tmp_path}/empty.jsonl: no documents to tokenize\n",
    )
    code, message = tokenize(tmp_path / "empty.jsonl", vocabulary="new", more=["--train-vocab", "300"])
    assert (code, "no documents" in message, (tmp_path / "new").exists()) == (1, True, False)
    code, message = tokenize(tmp_path / "empty.jsonl", file)
    assert code == 0 and f"warning: {tmp_path}/empty.jsonl: no documents\n" in message and "1 documents" in message


def test_a_document_without_tokens_is_named(tmp_path, capsys):
    cwm.Tokenizer.train(["x"], 256, special_tokens=[]).save(tmp_path / "vocabulary")
    file = write_lines(tmp_path / "rows.jsonl", {"text": "x"}, {"text": ""})
    options = ["--tokenizer", str(tmp_path / "vocabulary"), "-o", str(tmp_path / "shards")]
    assert main(["tokenize", str(file), *options]) == 1
    assert f"{file}, line 2: a document needs at least one token" in capsys.readouterr().err


def test_the_command_writes_shards_of_texts_and_chats(tmp_path, tokenizer, capsys):
    tokenizer.save(tmp_path / "vocabulary")
    write_lines(tmp_path / "texts.jsonl", {"text": "x = 1\n", "source": "code"})
    write_lines(tmp_path / "chats.jsonl", {"messages": CHAT, "source": "chats"})
    files = [str(tmp_path / name) for name in ("texts.jsonl", "chats.jsonl")]
    assert main(["tokenize", *files, "--tokenizer", str(tmp_path / "vocabulary"), "-o", str(tmp_path / "shards")]) == 0
    shards = cwm.Shards(tmp_path / "shards")
    assert len(shards) == 2 and sorted(shards.sources) == ["chats", "code"]
    assert "2 documents" in capsys.readouterr().err


PATCHES = """
import numpy as np
from cwm_core.data import DocumentKind, TrainingDocument

class PatchKind(DocumentKind):
    columns = ("patch", "repository")
    endings = (".diff",)

    def read_file(self, path):
        yield str(path), (path.read_text(), "files")

    def read_row(self, row, where):
        if not row["patch"].startswith("@@"):
            raise ValueError(f"{where}: not a patch")
        return None if "binary" in row["patch"] else (row["patch"], row["repository"])

    def source(self, content, row):
        return content[1]

    def encode(self, tokenizer, content):
        if not content[0]:
            raise ValueError("an empty patch")
        ids = tokenizer.encode(content[0])
        return TrainingDocument(ids, np.arange(len(ids)) > 0, {"hunk": np.array([[0, len(ids)]], np.int32)})

    def texts(self, content):
        yield content[0]

def make():
    return PatchKind()

not_a_kind = 3
"""


@pytest.fixture
def patches(tmp_path, monkeypatch):
    """Return a folder with a module that defines a document kind, as the current folder."""
    (tmp_path / "patch_kinds.py").write_text(PATCHES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("patch_kinds", None)


def test_a_kind_from_outside_reads_rows_and_files(patches, tokenizer):
    write_lines(patches / "rows.jsonl", {"patch": "@@ a", "repository": "one"}, {"patch": "@@ binary"}, {"text": "x"})
    (patches / "b.diff").write_text("@@ b")
    kinds = document_kinds(["patch_kinds:PatchKind"])
    found = [(item.content, item.source) for item in read_items(patches / "rows.jsonl", kinds)]
    assert found == [(("@@ a", "one"), "one"), ("x", patches.name)]
    (item,) = read_items(patches / "b.diff", kinds)
    assert item.content == ("@@ b", "files") and list(item.texts()) == ["@@ b"]
    document = item.encode(tokenizer)
    assert tokenizer.decode(document.ids) == "@@ b" and not document.loss_mask[0] and document.loss_mask[1:].all()
    # A folder with files of a kind's own is read for these alone.
    assert list(document_files([patches], kinds)) == [patches / "b.diff"]
    assert list(document_files([patches])) == [patches / "rows.jsonl"]


def test_mistakes_in_documents_of_a_kind_from_outside_say_where(patches, tokenizer):
    write_lines(patches / "rows.jsonl", {"patch": "no"})
    kinds = document_kinds(["patch_kinds:make"])
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1: not a patch"):
        list(read_items(patches / "rows.jsonl", kinds))
    (patches / "empty.diff").touch()
    (item,) = read_items(patches / "empty.diff", kinds)
    with pytest.raises(ValueError, match=r"empty.diff: an empty patch"):
        item.encode(tokenizer)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("patch_kinds", "expected an import path of the form module:name"),
        ("patch_kinds:Missing", "patch_kinds has no 'Missing'"),
        ("no_such_module:X", "no module named 'no_such_module'"),
        ("patch_kinds:not_a_kind", "expected a cwm_core.data.DocumentKind, got 3"),
    ],
)
def test_import_paths_without_a_kind_are_refused(patches, path, message):
    with pytest.raises(ValueError, match=message):
        document_kinds([path])


def test_a_module_that_fails_to_import_another_shows_its_own_error(patches):
    (patches / "patch_kinds.py").write_text("import no_such_dependency\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        document_kinds(["patch_kinds:PatchKind"])


def test_an_installed_package_adds_a_kind(patches, monkeypatch):
    package = patches / "site" / "patches-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Name: patches\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[cwm_core.document_kinds]\npatch = patch_kinds:PatchKind\n")
    monkeypatch.syspath_prepend(patches / "site")
    monkeypatch.syspath_prepend(patches)
    assert next(type(kind).__name__ for kind in document_kinds()) == "PatchKind"


def test_an_extra_kind_comes_before_and_instead_of_a_built_in_one(tmp_path):
    class Upper(TextKind):
        def read_row(self, row, where):
            return row["text"].upper()

    file = write_lines(tmp_path / "rows.jsonl", {"text": "x"})
    assert [item.content for item in read_items(file, document_kinds([Upper()]))] == ["X"]
    mine = TextKind()
    assert [kind for kind in document_kinds([mine]) if isinstance(kind, TextKind)] == [mine]


def test_the_command_encodes_a_kind_from_outside(patches, tokenizer):
    tokenizer.save(patches / "vocabulary")
    (patches / "b.diff").write_text("@@ b")
    options = ["--kind", "patch_kinds:PatchKind", "--tokenizer", "vocabulary", "-o", "shards"]
    assert main(["tokenize", "b.diff", *options]) == 0
    (document,) = cwm.Shards("shards")
    assert document.source == "files" and list(document.spans) == ["hunk"]


def test_the_example_of_a_kind(tmp_path, tokenizer, monkeypatch, capsys):
    shutil.copy(Path(__file__).parents[2] / "examples" / "document_kind.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    tokenizer.save("vocabulary")
    write_lines(tmp_path / "rows.jsonl", {"question": "1 + 1?", "answer": "2"}, {"question": "Why?"}, {"text": "x"})
    options = ["--kind", "document_kind:AnswerKind", "--tokenizer", "vocabulary", "-o", "shards"]
    assert main(["tokenize", "rows.jsonl", *options]) == 0
    answer, text = cwm.Shards("shards")
    assert tokenizer.decode(answer.tokens) == "<|begin_of_text|>1 + 1?2<|end_of_text|>"
    assert tokenizer.decode(answer.tokens[answer.loss_mask]) == "2<|end_of_text|>"
    assert answer.spans["answer"].tolist() == [[len(answer.tokens) - 2, len(answer.tokens)]]
    assert tokenizer.decode(text.tokens) == "<|begin_of_text|>x<|end_of_text|>"
    write_lines(tmp_path / "rows.jsonl", {"question": "1 + 1?", "answer": 2})
    assert main(["tokenize", "rows.jsonl", *options[:-1], "other"]) == 1
    assert "rows.jsonl, line 1: expected strings 'question' and 'answer'" in capsys.readouterr().err
