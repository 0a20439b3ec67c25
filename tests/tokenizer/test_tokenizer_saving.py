"""Saving a vocabulary: whole or not at all."""

import os

import pytest
from cwm_core import Tokenizer
from llama3 import rank_path


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
