"""Texts, chats and traces in files, as documents to train on."""

import json

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.cli import main
from cwm_core.data.documents import Chat, Text, encode_item, item_texts, read_items
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
    return [(encode_item(tokenizer, item), item.source) for item in read_items(file)]


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


def test_of_a_chat_what_the_assistant_says_is_learned(tmp_path, tokenizer):
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


def test_parquet_gives_what_jsonl_gives(tmp_path, tokenizer):
    """Parquet has all keys in every message, null where a message lacks one."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": None, "messages": CHAT}, {"text": "x", "messages": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    contents = [item.content for item in read_items(tmp_path / "rows.parquet")]
    assert contents == [Chat(CHAT), Text("x")]


def test_vocabularies_learn_from_what_is_encoded(tmp_path):
    file = write_lines(tmp_path / "rows.jsonl", {"text": "a text"}, {"messages": CHAT[:2]})
    texts = [text for item in read_items(file) for text in item_texts(item)]
    assert texts == ["a text", "Be brief.", "What is 1 + 1?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON: Expecting"),
        ("[1]", "line 2: not a JSON object, but a list"),
        ('{"texts": "x"}', "line 2: there is no 'messages', 'trace' or 'text'"),
        ('{"text": 1}', "line 2: there is no 'messages', 'trace' or 'text'"),
        ('{"messages": "x"}', "line 2: messages is no list of objects"),
        ('{"messages": [{"role": "user"}]}', "line 2: a message has no content"),
        ('{"messages": [{"role": "cat", "content": "x"}]}', "line 2: message 0: unknown role 'cat'"),
        ('{"trace": "AAAA"}', "line 2: "),
    ],
)
def test_mistakes_say_where(tmp_path, tokenizer, line, message):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "x"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        encoded(tokenizer, file)


def test_the_command_writes_shards_of_texts_and_chats(tmp_path, tokenizer, capsys):
    tokenizer.save(tmp_path / "vocabulary")
    write_lines(tmp_path / "texts.jsonl", {"text": "x = 1\n", "source": "code"})
    write_lines(tmp_path / "chats.jsonl", {"messages": CHAT, "source": "chats"})
    files = [str(tmp_path / name) for name in ("texts.jsonl", "chats.jsonl")]
    assert main(["tokenize", *files, "--tokenizer", str(tmp_path / "vocabulary"), "-o", str(tmp_path / "shards")]) == 0
    shards = cwm.Shards(tmp_path / "shards")
    assert len(shards) == 2 and sorted(shards.sources) == ["chats", "code"]
    assert "2 documents" in capsys.readouterr().err
