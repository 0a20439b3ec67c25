"""Training vocabularies: the merges of Hugging Face's trainer, from texts and from files, by any number of threads."""

import json
import os
import random
import signal
import threading
import time
from itertools import cycle, pairwise
from pathlib import Path

import pytest
import tokenizers
from cwm_core import Tokenizer
from cwm_core.tokenizer import GPT2_PATTERN, LLAMA3_PATTERN
from cwm_core.tokenizer import tokenizer as module
from hypothesis import example, given, settings
from hypothesis import strategies as st

STDLIB = sorted(Path(os.__file__).parent.glob("*.py"))

# Few letters make many ties and overlaps; the rest meets every branch of the pattern.
TEXTS = st.one_of(
    st.text(),
    st.text("ab ", max_size=60),
    st.lists(
        st.sampled_from([" ", "  ", "\n", "\r\n", "\u3000", "'s", "é", "日", "12345", ".=", "ab"]), max_size=60
    ).map("".join),
)


def train_by_library(texts, vocab_size, pattern=LLAMA3_PATTERN, **arguments):
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, **arguments
    )
    library.train_from_iterator(texts, trainer)
    return json.loads(library.to_str())["model"]


def model_of(tokenizer):
    return json.loads(tokenizer._native.to_json())["model"]


def assert_same_model(tokenizer, expected):
    model = model_of(tokenizer)
    assert model["vocab"] == expected["vocab"]
    assert [tuple(merge.split(" ")) for merge in model["merges"]] == [tuple(merge) for merge in expected["merges"]]


@pytest.mark.parametrize("vocab_size", [256, 257, 1000, 4096, 20_000])
def test_merges_equal_those_of_tokenizers(vocab_size):
    texts = [path.read_text("utf-8") for path in STDLIB]
    assert sum(map(len, texts)) > 1_000_000
    assert_same_model(Tokenizer.train(iter(texts), vocab_size), train_by_library(texts, vocab_size))


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, r"\w+|\W+", r"[^\n]*\n"])
def test_merges_equal_those_of_tokenizers_with_another_pattern(pattern):
    texts = [path.read_text("utf-8") for path in STDLIB[::8]]
    assert_same_model(Tokenizer.train(texts, 2000, pattern=pattern), train_by_library(texts, 2000, pattern))


@settings(max_examples=500, deadline=None)
@given(texts=st.lists(TEXTS, max_size=20), size=st.integers(256, 400), threads=st.integers(1, 4))
@example(texts=["aaaaaaa aaaaa aaaa aaa aa a", "abababab babab"], size=300, threads=1)
def test_merges_equal_those_of_tokenizers_for_any_text(texts, size, threads):
    assert_same_model(Tokenizer.train(iter(texts), size, threads=threads), train_by_library(texts, size))


def test_pairs_that_occur_once_are_merged_as_the_library_does_by_default():
    texts = ["abcdef", "ghijkl"]
    assert_same_model(Tokenizer.train(texts, 300), train_by_library(texts, 300))
    assert Tokenizer.train(texts, 300, special_tokens=[]).vocab_size == 256 + 10


def test_the_result_depends_neither_on_threads_nor_on_the_order_of_texts():
    texts = [path.read_text("utf-8") for path in STDLIB]
    models = [model_of(Tokenizer.train(texts[::step], 3000, threads=n)) for n in (1, 2, 5) for step in (1, -1)]
    assert all(model == models[0] for model in models)


def test_training_a_long_piece_takes_seconds_at_most():
    start = time.perf_counter()
    tokenizer = Tokenizer.train(["ab" * 500_000, "x" * 1_000_000], 400)
    assert time.perf_counter() - start < 10
    assert tokenizer.decode(tokenizer.encode("abx" * 1000)) == "abx" * 1000


def test_trained_special_tokens_are_compact():
    tokenizer = Tokenizer.train(["a b c"], 300, special_tokens=["<|frame_sep|>", "<|arg_sep|>"])
    ordinary = tokenizer.vocab_size - 2
    assert ordinary < 300  # no pair was left
    assert tokenizer.special_tokens == {"<|frame_sep|>": ordinary, "<|arg_sep|>": ordinary + 1}


def test_bad_arguments_are_refused():
    for size in (0, 255, 2**22 + 1):
        with pytest.raises(ValueError, match=str(size)):
            Tokenizer.train([], size)
    with pytest.raises(TypeError):
        Tokenizer.train([b"bytes"], 300)
    with pytest.raises(ValueError, match="gave up"):
        Tokenizer.train(["ok", "a" * 100 + "c"], 300, pattern=r"(?:a|a(?!x))*(?<!a)c", threads=2)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_files_are_read_as_texts(tmp_path):
    texts = [path.read_bytes().decode() for path in STDLIB[::10]]
    trained = Tokenizer.train_files(STDLIB[::10], 1000, special_tokens=["<s>"])
    assert model_of(trained) == model_of(Tokenizer.train(texts, 1000, special_tokens=["<s>"]))
    assert trained.special_tokens == {"<s>": 1000}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Tokenizer.train_files([tmp_path / "nowhere"], 300)


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.sampled_from(["\n", "\na", "\n\n.", "\r", " ", "\t", "\u2028", "a", "é", "日1", "😀"])).map(
        "".join
    )
)
def test_where_a_file_is_cut_makes_no_difference(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "text"
    path.write_bytes(text.encode())
    expected = model_of(Tokenizer.train([text], 300))
    with pytest.MonkeyPatch.context() as patch:
        for size in (6, 9, 16):
            patch.setattr(module, "_FILE_BYTES", size)
            texts = list(module._texts_of_file(path))
            assert "".join(texts) == text
            assert all(len(part.encode()) < 3 * size for part in texts)
            # Where no line begins that is not indented, the file is cut anywhere.
            if all(part.endswith("\n") and not after[:1].isspace() for part, after in pairwise(texts)):
                assert model_of(Tokenizer.train_files([path], 300)) == expected


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"\xff", 0),
        (b"ab\n\xc3(", 3),
        (b"a" * 15 + b"\xe6\x97", 15),
        (b"a" * 15 + b"\xe6\x97x", 15),
        (b"\n" * 99 + b"\x80", 99),
    ],
)
@pytest.mark.parametrize("size", [4, 16, 1 << 20])
def test_a_file_that_is_not_utf8_is_named_with_the_place(data, offset, size, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FILE_BYTES", size)
    (tmp_path / "good").write_bytes(b"good " * 100)
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(ValueError, match=f"bad: not UTF-8 at byte {offset}:"):
        Tokenizer.train_files([tmp_path / "good", tmp_path / "bad"], 300)


def test_large_files_are_not_held_in_memory(tmp_path):
    piece = "def f(x):\n    return x + 1\n\n\n"
    (tmp_path / "large").write_text(piece * 200_000)
    sizes = [len(text) for text in module._texts_of_file(tmp_path / "large")]
    assert sum(sizes) == 200_000 * len(piece)
    assert max(sizes) < 1.1 * 2**20


# ---- progress and Ctrl-C -------------------------------------------------------------------------------------------


def test_both_phases_report_progress():
    texts = [path.read_text("utf-8") for path in STDLIB] * 8
    seen = []
    Tokenizer.train(texts, 700, progress=lambda *state: seen.append(state))
    counted = [state for state in seen if state[0] == "count"]
    merged = seen[len(counted) :]
    assert len(counted) > 1
    assert counted[-1] == ("count", sum(len(text.encode()) for text in texts), None)
    assert merged[-1] == ("merge", 444, 444)
    assert all(phase == "merge" and wanted == 444 for phase, _, wanted in merged)
    for states in (counted, merged):
        assert states == sorted(states, key=lambda state: state[1])


@pytest.mark.parametrize("phase", ["count", "merge"])
def test_exceptions_of_the_callback_end_the_training(phase):
    def stop(now, done, wanted):
        if now == phase:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        Tokenizer.train([path.read_text("utf-8") for path in STDLIB[:10]], 700, progress=stop)


def interrupted(call, seconds=0.3):
    """Return the time from Ctrl-C until it ends the call, which gets a function that starts the time until Ctrl-C."""
    main, sent = threading.get_ident(), []

    def send():
        sent.append(time.perf_counter())
        signal.pthread_kill(main, signal.SIGINT)

    timer = threading.Timer(seconds, send)
    with pytest.raises(KeyboardInterrupt):
        call(timer.start)
    return time.perf_counter() - sent[0]


def test_ctrl_c_ends_the_counting():
    endless = cycle([STDLIB[0].read_text("utf-8")])

    def train(start):
        start()
        Tokenizer.train(endless, 1000)

    assert interrupted(train) < 3


def test_ctrl_c_ends_the_merging():
    letters = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=3_000_000))
    phases = []

    def train(start):
        def progress(phase, *_):
            phases.append(phase)
            if phases.count("merge") == 1 and phase == "merge":
                start()

        # One piece is counted at once; a million merges in it take many seconds.
        Tokenizer.train([letters], 10**6, progress=progress)

    assert interrupted(train) < 3
    assert phases[0] == "count"
    assert set(phases[1:]) == {"merge"}
