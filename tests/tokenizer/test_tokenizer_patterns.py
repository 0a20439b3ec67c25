"""Split patterns that users give, against tiktoken and tokenizers."""

import json

import pytest
import tiktoken
import tokenizers
from cwm_core import Tokenizer
from cwm_core.tokenizer import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    QWEN2_PATTERN,
)
from hypothesis import given, settings
from llama3 import rank_path, tiktoken_encoding
from tiktoken.load import load_tiktoken_bpe
from vocabularies import BYTES, PATTERNS, TEXTS, by_library, json_file, ranks_file, texts_of_every_code_point


@pytest.mark.parametrize("pattern", ["", "(", "[", r"\p{Nope}", "(" * 10_000])
def test_bad_patterns_are_refused(pattern, tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    with pytest.raises(ValueError, match="split pattern"):
        Tokenizer.load(tmp_path / "ranks", pattern=pattern)


def test_a_catastrophic_pattern_is_an_error(tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    tokenizer = Tokenizer.load(tmp_path / "ranks", pattern=r"(?:a|a(?!x))*(?<!a)c")
    trained = Tokenizer.train(["b"], 256, pattern=r"(?:a|a(?!x))*(?<!a)c")
    for call in (tokenizer.encode, tokenizer.count, lambda text: tokenizer.encode_batch([text]), trained.encode):
        with pytest.raises(ValueError, match="gave up"):
            call("a" * 100 + "c")


# What engines of regular expressions disagree on, or do in ways of their own.
USER_PATTERNS = [
    r"^", r"$", r"^a|b$", r"\Aa|b\z", r"b\Z", r"\w+|\W+", r"\b", r"\B", r"\d+|\D+", r"\s+|\S+", r"\h+|\H+",
    r"[[:alpha:]]+", r"[[:alnum:]]+", r"[[:punct:]]", r"[[:space:]]+", r"[[:word:]]+", r"[[:^alpha:]]+", r"[^\W\d]+",
    r".+", r"(?m:.+)", r"(?s:.+)", r"(?i:ss)", r"(?i:[k-s]+)", r"(?i)ﬁ|st", r"(?<=a)b", r"(?<!\w)1", r"(?=b)",
    r"a(?!b)", r"(?>a|ab)c?", r"a++b?", r"\p{N}{1,3}+", r"\d{2}?", r"a{,2}", r"(?<n>a)\k<n>", r"(a)\1", r"\X", r"\R",
    r"\Ga", r"a\Kb", r"\O", r"\N+", r"\p{L}+", r"\p{Lu}", r"\p{Han}+", r"\p{Greek}", r"\p{Emoji}", r"\P{L}+",
    r"\p{^L}+", r"\u00e9", r"\xff", r"\x{e9}", r"[a-z&&[^b]]+", r"(?x) a b", r"(?#a)b", r"(?~ab)", r"(?U:a+)",
    r"\Q.\E", r"(?P<n>a)", r"a|", r"(?:)", r"\K",
    CL100K_PATTERN, CL100K_PATTERN.replace("{1,3}", "{1,3}+").replace(r"\z", "$"),
]  # fmt: skip


USER_TEXT = "".join(
    f"a{c}b1{c}{c} ab aab c{c}_12345\n{c}b\r\nA{c}"
    for c in [
        "", "²", "\u200d", "\u200c", "é", "e\u0301", "ß", "ſ", "ﬁ", "ss", "K", "日", "Ω", "😀", "\u2028", "\x0b", 
        "\x85", "Ⅷ", "٣",
    ]
)  # fmt: skip


USER_TEXTS = [USER_TEXT, USER_TEXT + "\n", "", "\n", "a\nb", "  \n \n a  "]


@pytest.mark.parametrize("pattern", USER_PATTERNS)
def test_a_pattern_for_training_equals_tokenizers_or_is_refused(pattern, tmp_path):
    """In training, after saving, and in a `tokenizer.json` that others wrote."""
    split = tokenizers.pre_tokenizers.Split
    try:
        theirs = split(tokenizers.Regex(pattern), "isolated")
    except Exception:
        with pytest.raises(ValueError, match="split pattern"):
            Tokenizer.train(["a"], 256, pattern=pattern)
        return
    ours = Tokenizer.train(USER_TEXTS, 300, pattern=pattern)
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([theirs, byte_level])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=byte_level.alphabet(), show_progress=False
    )
    library.train_from_iterator(USER_TEXTS, trainer)
    assert json_file(ours, tmp_path)["model"]["merges"] == [
        " ".join(merge) for merge in json.loads(library.to_str())["model"]["merges"]
    ]
    saved = by_library(ours, tmp_path)
    again = Tokenizer.load(tmp_path)
    for text in USER_TEXTS:
        assert ours.encode(text).tolist() == library.encode(text).ids == saved.encode(text).ids
        assert again.encode(text).tolist() == saved.encode(text).ids


@pytest.fixture(scope="module")
def uncut(tmp_path_factory):
    """Return ranks that merge all neighbors in the texts, so that every cut changes the tokens."""
    path = tmp_path_factory.mktemp("uncut") / "ranks"
    Tokenizer.train(USER_TEXTS, 600, pattern="(?m:.+)").save_ranks(path)
    return path


@pytest.mark.parametrize("pattern", USER_PATTERNS)
def test_a_pattern_for_ranks_equals_tiktoken_and_is_saved_as_one_that_means_the_same(pattern, uncut, tmp_path):
    ranks = load_tiktoken_bpe(str(uncut))
    try:
        theirs = tiktoken.Encoding("peer", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:
        return  # only its newer engine, which is ours, takes this pattern
    ours = Tokenizer.load(uncut, pattern=pattern)
    for text in USER_TEXTS:
        try:
            ids = theirs.encode_ordinary(text)
        except BaseException:  # a panic of tiktoken's
            continue
        if theirs.decode(ids) == text:  # tiktoken drops what no match covers
            assert ours.encode(text).tolist() == ids
    try:
        library = by_library(ours, tmp_path)
    except ValueError as error:
        assert "tokenizer.json cannot express" in str(error)
        return
    again = Tokenizer.load(tmp_path)
    for text in USER_TEXTS:
        assert library.encode(text).ids == ours.encode(text).tolist() == again.encode(text).tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_named_pattern_is_saved_with_equal_ids(pattern, tmp_path):
    ours = Tokenizer.load(rank_path(), pattern=pattern)
    library = by_library(ours, tmp_path)
    for text in [*(text for text in texts_of_every_code_point() if len(text) > 1), *USER_TEXTS]:
        assert library.encode(text).ids == ours.encode(text).tolist(), repr(text[:10])


def test_the_patterns_as_tiktoken_writes_them_are_saved_with_equal_ids(tmp_path):
    for pattern in (
        CL100K_PATTERN.replace("{1,3}", "{1,3}+").replace(r"\z", "$"),
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
    ):
        ours = Tokenizer.load(rank_path(), pattern=pattern)
        assert ours.encode("1234567").tolist() == tiktoken.Encoding(
            "peer", pat_str=pattern, mergeable_ranks=tiktoken_encoding()._mergeable_ranks, special_tokens={}
        ).encode_ordinary("1234567")
        library = by_library(ours, tmp_path)
        for text in ["1234567 \n", "a \n b  ", *USER_TEXTS]:
            assert library.encode(text).ids == ours.encode(text).tolist()


def test_hostile_patterns_of_a_file_are_errors(small, tmp_path):
    file = json_file(small, tmp_path)
    for pattern in ["(" * 100_000, "(?:" * 3000 + "a" + ")" * 3000 + "(", "[" * 10_000, r"(?<=a*)b\k<x>", "a{100001}"]:
        file["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": pattern}
        (tmp_path / "tokenizer.json").write_text(json.dumps(file))
        with pytest.raises(ValueError, match="split pattern"):
            Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("llama3", LLAMA3_PATTERN),
        ("Llama-3", LLAMA3_PATTERN),
        ("GPT2", GPT2_PATTERN),
        ("cl100k_base", CL100K_PATTERN),
        ("o200k", O200K_PATTERN),
        ("Qwen2", QWEN2_PATTERN),
    ],
)
def test_patterns_have_names(name, pattern, tmp_path):
    assert Tokenizer.train(["a b"], 256, pattern=name).pattern == pattern
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    assert Tokenizer.load(tmp_path / "ranks", pattern=name).pattern == pattern


@pytest.mark.parametrize("name", ["qwen", "gpt-5", "llama3.3", "p50k_base", "LLAMA 4"])
def test_an_unknown_name_is_not_a_pattern(name, tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    for call in (
        lambda: Tokenizer.train(["a b"], 256, pattern=name),
        lambda: Tokenizer.load(tmp_path / "ranks", pattern=name),
    ):
        with pytest.raises(ValueError, match=f"{name}.*one of llama3, gpt2"):
            call()
    assert Tokenizer.train(["a b"], 256, pattern=f"(?:{name})").pattern == f"(?:{name})"


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_the_pattern_of_gpt2_is_that_of_byte_level(byte_level, text):
    library, ours = byte_level
    assert ours.encode(text).tolist() == library.encode(text).ids


@pytest.fixture(scope="module")
def byte_level(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    file = json_file(small, folder)
    file["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    (folder / "tokenizer.json").write_text(json.dumps(file))
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True
    return library, Tokenizer.load(folder)
