"""Encoding of long texts and long pieces, and the memory of pieces."""

import time

import numpy as np
import pytest
from vocabularies import STDLIB

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


def test_cached_tokens_stay_correct(llama, peer):
    """More pieces than are remembered, each twice, so that places are taken over."""
    texts = [
        " ".join(f"{number:x}q{number * 7919 % 99991:x}" for number in range(start, start + 5000))
        for start in range(0, 200_000, 5000)
    ]
    expected = [peer.encode_ordinary(text) for text in texts]
    for _ in range(2):
        assert [llama.encode(text).tolist() for text in texts] == expected


def test_a_long_text_is_shared_by_threads(llama):
    text = "\n".join(path.read_text("utf-8") for path in STDLIB) * 2
    whole = llama.encode(text)
    for texts in ([text], ["a", text, "", text[:700_001], "b"]):
        for ids, alone in zip(llama.encode_batch(texts, threads=3), texts, strict=True):
            assert np.array_equal(ids, whole if alone is text else llama.encode(alone))
