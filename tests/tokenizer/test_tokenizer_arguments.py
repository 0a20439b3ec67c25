"""Arguments of the wrong type or size."""

import numpy as np
import pytest
from cwm_core import Tokenizer
from llama3 import rank_path


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


def test_tokenizer_json_takes_no_arguments(small, tmp_path):
    small.save(tmp_path)
    with pytest.raises(ValueError, match="apply to rank files only"):
        Tokenizer.load(tmp_path, pattern="a")
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "nowhere")
