"""Vocabulary files: forms that mean the same, and hostile files."""

import json
import pickle

import numpy as np
import pytest
import tokenizers
from cwm_core import DamagedFileError, Tokenizer
from hypothesis import given, settings
from llama3 import SPECIAL, rank_path
from vocabularies import BYTES, STDLIB, TEXTS, by_library, json_file, ranks_file


def test_saved_llama_loads_in_tokenizers_with_equal_ids(llama, tmp_path):
    library = by_library(llama, tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.special_tokens == llama.special_tokens
    assert again.pattern == llama.pattern
    assert library.get_vocab_size() == llama.vocab_size
    assert all(library.token_to_id(name) == id for name, id in SPECIAL.items())

    for path in STDLIB[::20]:
        text = path.read_text("utf-8")
        assert library.encode(text).ids == llama.encode(text).tolist() == again.encode(text).tolist()

    @settings(max_examples=300, deadline=None)
    @given(text=TEXTS)
    def check(text):
        assert library.encode(text).ids == llama.encode(text).tolist() == again.encode(text).tolist()

    check()
    library.encode_special_tokens = False
    text = "a<|frame_sep|><|begin_of_text|> b"
    assert library.encode(text).ids == llama.encode(text, allowed_special="all").tolist()


def test_ranks_survive_every_form(llama, small, tmp_path):
    llama.save_ranks(tmp_path / "ranks")
    assert (tmp_path / "ranks").read_bytes() == rank_path().read_bytes()
    llama.save(tmp_path / "folder")
    Tokenizer.load(tmp_path / "folder" / "tokenizer.json").save_ranks(tmp_path / "ranks2")
    assert (tmp_path / "ranks2").read_bytes() == rank_path().read_bytes()

    small.save_ranks(tmp_path / "small")
    ranked = Tokenizer.load(tmp_path / "small")
    text = STDLIB[20].read_text("utf-8")
    assert np.array_equal(ranked.encode(text), small.encode(text))


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "no token for the byte 0x00"),
        (ranks_file(BYTES[:-1]), "no token for the byte 0xff"),
        (ranks_file(BYTES) + b"!!!! 256\n", "line 257: invalid base64"),
        (ranks_file(BYTES) + b"YWI=\n", "line 257: expected a space"),
        (ranks_file(BYTES) + b"YWI= -1\n", "line 257: expected a rank below"),
        (ranks_file(BYTES) + b"YWI= 99999999999999\n", "line 257: expected a rank below"),
        (ranks_file(BYTES) + b"YWI= 4000000000\n", "above the limit"),
        (ranks_file([*BYTES, b"ab", b"ab"]), "tokens 256 and 257 have the same bytes"),
        (ranks_file([*BYTES, b"ab"], [*range(256), 5]), "duplicate token id 5"),
        (ranks_file(BYTES) + b" 256\n", "line 257"),
        (ranks_file([*BYTES, b"x" * 5000]), "5000 bytes"),
        (b"\x80\x02PK\xff\xfe 1\n", "line 1"),
        (b"{", "not a tokenizer.json"),
        (b"{}", "not a tokenizer.json"),
        (b'{"a":' * 100_000, "not a tokenizer.json"),
    ],
)
def test_hostile_files_are_refused_with_a_sentence(file, why, tmp_path):
    (tmp_path / "vocab").write_bytes(file)
    with pytest.raises(DamagedFileError, match=f"vocab: .*{why}"):
        Tokenizer.load(tmp_path / "vocab")


def test_gaps_and_unreachable_tokens_load(tmp_path):
    tokens, ranks = [*BYTES, b"ab", b"xyz"], [*range(256), 300, 310]
    (tmp_path / "ranks").write_bytes(ranks_file(tokens, ranks))
    tokenizer = Tokenizer.load(tmp_path / "ranks", special_tokens={"<s>": 299, "<e>": 400}, pattern=r"\w+|\W+")
    assert tokenizer.vocab_size == 401
    assert tokenizer.encode("xyz xyzab", allowed_special="all").tolist() == [310, 32, *b"xyz", 300]
    assert tokenizer.encode("<s>ab<e>", allowed_special="all").tolist() == [299, 300, 400]
    with pytest.raises(ValueError, match="305"):
        tokenizer.decode([305])
    library = by_library(tokenizer, tmp_path / "folder")
    library.encode_special_tokens = False
    for text in ("xyz xyzab", "<s>ab<e>", "zxyz"):
        ids = tokenizer.encode(text, allowed_special="all").tolist()
        assert library.encode(text).ids == ids
        assert Tokenizer.load(tmp_path / "folder").encode(text, allowed_special="all").tolist() == ids
    assert pickle.loads(pickle.dumps(tokenizer)).encode("xyz").tolist() == [310]


@pytest.mark.parametrize(
    ("keys", "value", "why"),
    [
        (["normalizer"], {"type": "NFC"}, "NFC"),
        (["pre_tokenizer"], None, "pre_tokenizer"),
        (["pre_tokenizer"], {"type": "Whitespace"}, "Whitespace"),
        (["pre_tokenizer", "pretokenizers", 0, "behavior"], "Removed", "Removed"),
        (["pre_tokenizer", "pretokenizers", 1, "add_prefix_space"], True, "pre_tokenizer"),
        (["model", "type"], "WordPiece", "WordPiece"),
        (["model", "dropout"], 0.1, "dropout"),
        (["model", "unk_token"], "<unk>", "unk_token"),
        (["model", "byte_fallback"], True, "byte_fallback"),
        (["model", "end_of_word_suffix"], "</w>", "end_of_word_suffix"),
        (["model", "vocab", "日"], 5000, "byte-level"),
        (["model", "vocab", "ab cd"], 5000, "byte-level"),
        (["model", "vocab", "zzz"], 5, "duplicate token id 5"),
        (["model", "vocab", "zzz"], -5, "not a tokenizer.json"),
        (["model", "vocab", "zzz"], 2**31, "above the limit"),
        (["model", "merges", 0], "qqq q", "merge 0"),
        (["model", "merges", 0], "q", "merge 0"),
        (["model", "merges", 0], "Q Z", "merge 0"),
        (["added_tokens", 0, "special"], False, "begin_of_text"),
        (["added_tokens", 0, "lstrip"], True, "lstrip"),
        (["added_tokens", 0, "id"], 3, "id 3 of an ordinary token"),
    ],
)
def test_features_other_than_byte_level_bpe_are_refused_by_name(small, tmp_path, keys, value, why):
    file = json_file(small, tmp_path)
    place = file
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    with pytest.raises(ValueError, match=why):
        Tokenizer.load(tmp_path)


def test_ignore_merges_and_merge_order_are_respected(small, tmp_path):
    file = json_file(small, tmp_path)
    file["model"]["merges"].reverse()
    file["model"]["vocab"]["import"] = file["model"]["vocab"].get("import", 5000)
    for ignore_merges in (False, True):
        file["model"]["ignore_merges"] = ignore_merges
        (tmp_path / "tokenizer.json").write_text(json.dumps(file))
        library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        ours = Tokenizer.load(tmp_path)
        text = STDLIB[5].read_text("utf-8")
        assert ours.encode(text).tolist() == library.encode(text).ids
        assert ours.encode("import").tolist() == library.encode("import").ids
        with pytest.raises(ValueError, match="merges that do not follow from the ids"):
            ours.save_ranks(tmp_path / "ranks")
