"""Special and other added tokens."""

import json
import warnings

import pytest
import tiktoken
import tokenizers
from cwm_core import Tokenizer
from cwm_core.tokenizer import (
    CWM_SPECIAL_TOKENS,
    LLAMA3_PATTERN,
    special_tokens,
)
from tiktoken.load import load_tiktoken_bpe
from vocabularies import BYTES, by_library, json_file, ranks_file


@pytest.mark.parametrize(
    "special", [{"<s>": 97}, {"": 300}, ["<s>", "<s>"], {"<a>": 300, "<b>": 300}, {"<s>": 2**31}, {"<s>": 2**32 - 1}]
)
def test_bad_special_tokens_are_refused(special, tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    with pytest.raises(ValueError, match="special token"):
        Tokenizer.load(tmp_path / "ranks", special_tokens=special)


@pytest.mark.parametrize(
    ("in_vocab", "added"),
    [
        ({}, [("<a>", 900), ("<b>", 1000)]),
        ({}, [("<b>", 257), ("<a>", 256)]),
        ({"<a>": 500}, [("<a>", 500), ("<b>", 257)]),
        ({"<a>": 500}, [("<b>", 300), ("<a>", 700), ("<c>", 1)]),
        ({"zz": 258}, [("<a>", 257)]),
        ({"": 256}, [("<a>", 257)]),
    ],
)
def test_added_tokens_have_the_ids_of_tokenizers(in_vocab, added, tmp_path):
    file = json_file(Tokenizer.train([], 256, special_tokens=[]), tmp_path)
    file["model"]["vocab"] |= in_vocab
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False) | {"special": True}
    file["added_tokens"] = [{"id": id, "content": name} | flags for name, id in added if id != 1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = Tokenizer.load(tmp_path)
    names = [token["content"] for token in file["added_tokens"]]
    assert ours.special_tokens == {name: library.token_to_id(name) for name in names}
    assert ours.encode("x<a>y<b>", allowed_special="all").tolist() == library.encode("x<a>y<b>").ids
    moved = any(ours.special_tokens[token["content"]] != token["id"] for token in file["added_tokens"])
    assert [("as in the library tokenizers" in str(warning.message)) for warning in caught] == [True] * moved


@pytest.mark.parametrize("name", ["foo", "Ġfoo", "foo<|x|>"])
def test_no_ordinary_text_gives_a_special_token_after_save(name, tmp_path):
    for special in ({name: 5000}, {name: 300, "<s>": 7000}, [name]):
        ours = Tokenizer.train(["foo bar foo"], 257, special_tokens=special)
        library = by_library(ours, tmp_path)
        for text in ("foo", " foo", "foo foo", "a foo<|x|>"):
            assert library.encode(text).ids == ours.encode(text).tolist()
            assert not set(library.encode(text).ids) & set(ours.special_tokens.values())
        library.encode_special_tokens = False
        assert library.encode(name).ids == ours.encode(name, allowed_special="all").tolist()


def test_a_special_token_that_text_would_give_is_refused(tmp_path):
    """Where a token that no merge leads to has to be found whole, one in the vocabulary cannot be kept out."""
    (tmp_path / "ranks").write_bytes(ranks_file([*BYTES, b"xyz"]))
    special = {"<s>": 400, "foo": 300}
    with pytest.raises(ValueError, match='"foo" would give the special token "foo"'):
        Tokenizer.load(tmp_path / "ranks", special_tokens=special).save(tmp_path)
    file = json_file(Tokenizer.train([], 256, special_tokens=["foo"]), tmp_path)
    file["model"]["vocab"]["foo"] = 256
    file["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match='"foo" would give the special token "foo"'):
        Tokenizer.load(tmp_path)


def test_a_token_without_bytes(tmp_path):
    """Whisper's rank file has one, written as `=`, and so has its `tokenizer.json`."""
    (tmp_path / "ranks").write_bytes(ranks_file([*BYTES, b"ab"]) + b"= 257\n")
    ours = Tokenizer.load(tmp_path / "ranks", special_tokens=["<|endoftext|>"])
    theirs = tiktoken.Encoding(
        "whisper",
        pat_str=LLAMA3_PATTERN,
        mergeable_ranks=load_tiktoken_bpe(str(tmp_path / "ranks")),
        special_tokens={"<|endoftext|>": 258},
    )
    assert ours.special_tokens == {"<|endoftext|>": 258}
    assert ours.encode("ab ba").tolist() == theirs.encode("ab ba")
    assert ours.decode([257, 256, 257]) == theirs.decode([257, 256, 257]) == "ab"
    assert ours.token_to_bytes(257) == b""
    ours.save_ranks(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ranks").read_bytes()
    library = by_library(ours, tmp_path / "folder")
    again = Tokenizer.load(tmp_path / "folder")
    assert library.encode("ab ba").ids == again.encode("ab ba").tolist() == ours.encode("ab ba").tolist()
    assert library.token_to_id("<|endoftext|>") == again.special_tokens["<|endoftext|>"] == 258
    assert again.decode([257, 256]) == "ab"
    again.save_ranks(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ranks").read_bytes()


def test_a_special_token_named_as_an_ordinary_one_is_not_saved(tmp_path):
    tokenizer = Tokenizer.train([], 256, special_tokens=["a"])
    assert tokenizer.encode("a", allowed_special="all").tolist() == [256]
    with pytest.raises(ValueError, match="name of the ordinary token"):
        tokenizer.save(tmp_path)


def test_special_token_names_are_those_of_the_model():
    names = [value for name, value in vars(special_tokens).items() if name.isupper() and isinstance(value, str)]
    assert len(set(names)) == len(names) == 17
    assert set(names) == {name for name in CWM_SPECIAL_TOKENS if "reserved" not in name}
    assert set(special_tokens.TRACE_TOKENS) | set(special_tokens.CHAT_TOKENS) <= set(names)
