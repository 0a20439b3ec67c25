"""Shards, loaders, and models know the vocabulary that they were made with."""

from dataclasses import replace
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.cli import main
from cwm_core.tokenizer import GPT2_PATTERN, LLAMA3_PATTERN


def trained(word, **options):
    """Return a vocabulary of 263 tokens. Another word gives another vocabulary of the same size."""
    return cwm.Tokenizer.train([f"{word} {word} and other words " * 9], 262, special_tokens=["<|end|>"], **options)


ONE, OTHER = trained("abacus"), trained("zebra")


def write(folder, vocabulary, documents=20, **options):
    with cwm.ShardWriter(folder, vocabulary, **options) as writer:
        for i in range(documents):
            writer.add([1 + i, 2, 3])
    return str(folder)


def test_a_fingerprint_is_of_the_vocabulary_not_of_its_file(tmp_path):
    assert ONE.vocab_size == OTHER.vocab_size
    assert ONE.fingerprint == trained("abacus").fingerprint != OTHER.fingerprint
    assert len(ONE.fingerprint) == 16 and int(ONE.fingerprint, 16)
    ONE.save(tmp_path)
    assert cwm.Tokenizer.load(tmp_path).fingerprint == ONE.fingerprint
    assert trained("abacus", pattern=GPT2_PATTERN).fingerprint != ONE.fingerprint
    words = ["abacus and other words"] * 9
    special = [["<|end|>"], ["<|stop|>"], {"<|end|>": 285}]
    kinds = [cwm.Tokenizer.train(words, 270, special_tokens=names).fingerprint for names in special]
    assert len(set(kinds)) == 3


def test_a_rank_file_and_its_json_are_the_same_vocabulary(tmp_path):
    ranks = [bytes([i]) for i in range(256)] + [b"ab", b"abc", b"bc"]
    import base64

    (tmp_path / "ranks").write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % i for i, t in enumerate(ranks)))
    tokenizer = cwm.Tokenizer.load(tmp_path / "ranks", pattern=LLAMA3_PATTERN, special_tokens=["<|end|>"])
    tokenizer.save(tmp_path / "json")
    assert cwm.Tokenizer.load(tmp_path / "json").fingerprint == tokenizer.fingerprint


def test_shards_carry_it(tmp_path):
    folder = write(tmp_path / "one", ONE)
    assert cwm.Shards(folder).vocabulary_fingerprint == ONE.fingerprint
    assert cwm.PackedLoader(folder, 8).vocabulary_fingerprint == ONE.fingerprint
    assert len(cwm.Shards(folder, vocab_size=ONE)) == 20
    for refused in (
        lambda: cwm.Shards(folder, vocab_size=OTHER),
        lambda: cwm.PackedLoader(folder, 8, vocab_size=OTHER),
        lambda: cwm.ShardWriter(folder, OTHER, append=True),
    ):
        with pytest.raises(ValueError, match=f"another vocabulary.*{ONE.fingerprint}.*{OTHER.fingerprint}"):
            refused()
    write(folder, ONE, append=True)
    assert len(cwm.Shards(folder)) == 40


def test_folders_of_different_vocabularies_are_not_mixed(tmp_path):
    sources = {name: write(tmp_path / name, tokenizer) for name, tokenizer in (("a", ONE), ("b", OTHER), ("c", ONE))}
    assert cwm.PackedLoader({"a": sources["a"], "c": sources["c"]}, 8)
    with pytest.raises(ValueError, match=r'source "b" was made with another vocabulary .* than source "a"'):
        cwm.PackedLoader(sources, 8)
    Path(sources["b"], "00000.cwmtok").rename(Path(sources["a"], "00001.cwmtok"))
    with pytest.raises(ValueError, match=r"00001\.cwmtok: made with another vocabulary"):
        cwm.Shards(sources["a"])


def test_shards_that_name_none_fit_any_of_their_size(tmp_path):
    old = write(tmp_path / "old", ONE.vocab_size)
    assert cwm.Shards(old, vocab_size=ONE).vocabulary_fingerprint is None
    loader = cwm.PackedLoader({"old": old, "new": write(tmp_path / "new", OTHER)}, 8)
    assert loader.vocabulary_fingerprint == OTHER.fingerprint
    write(old, OTHER, append=True)
    assert cwm.Shards(old).vocabulary_fingerprint == OTHER.fingerprint


def test_a_state_is_of_its_vocabulary(tmp_path):
    """This holds too if the shards name no vocabulary and the loader gets one as an argument."""
    old = write(tmp_path / "old", ONE.vocab_size)
    state = cwm.PackedLoader(old, 8, vocab_size=ONE).state_dict()
    assert state["vocabulary"] == ONE.fingerprint
    cwm.PackedLoader(old, 8).load_state_dict(state)
    with pytest.raises(ValueError, match=f"vocabulary '{ONE.fingerprint}' -> '{OTHER.fingerprint}'"):
        cwm.PackedLoader(old, 8, vocab_size=OTHER).load_state_dict(state)
    cwm.PackedLoader(old, 8, vocab_size=OTHER).load_state_dict(
        {key: value for key, value in state.items() if key not in ("vocabulary", "sources")}  # as written before
    )


def test_resumed_tokenizing_takes_no_other_vocabulary(tmp_path, capsys):
    for name, tokenizer in (("one", ONE), ("other", OTHER)):
        tokenizer.save(tmp_path / name)
    (tmp_path / "texts.jsonl").write_text('{"text": "abacus"}\n{"text": "words"}\n')
    command = ["tokenize", str(tmp_path / "texts.jsonl"), "-o", str(tmp_path / "shards"), "--tokenizer"]
    assert main([*command, str(tmp_path / "one")]) == 0
    assert main([*command, str(tmp_path / "other"), "--resume"]) == 1
    assert f"another vocabulary (fingerprint {ONE.fingerprint})" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "one"), "--resume"]) == 0


@pytest.mark.torch
def test_a_model_carries_it(tmp_path):
    model = pytest.importorskip("cwm_core.model")
    config = replace(model.preset("tiny", vocab_size=300), vocabulary_fingerprint=ONE.fingerprint)
    assert model.ModelConfig.from_hf(config.to_hf()).vocabulary_fingerprint == ONE.fingerprint
    assert model.ModelConfig.from_hf(model.preset("tiny").to_hf()).vocabulary_fingerprint is None
