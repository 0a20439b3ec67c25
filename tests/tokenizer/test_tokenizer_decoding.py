"""Decoding, whole and incremental, and ids that are not in the vocabulary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TEXTS


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
