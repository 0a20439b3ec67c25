"""The verbs that take a model: where its vocabulary comes from, how predictions end, what is said of mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cwm_core as cwm
import pytest

torch = pytest.importorskip("torch")

from cwm_core.cli import main  # noqa: E402
from random_models import random_model  # noqa: E402

PROGRAM = "def double(n):\n    return n * 2\n"
PREDICT = ("--call", "double(2)", "--max-new-tokens", "20")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a model and its vocabulary, one with the model alone, and the vocabulary alone."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = cwm.Tokenizer.train([PROGRAM], 260)
    shape = {"vocab_size": tokenizer.vocab_size, "layers": 1, "width": 32, "ffn_width": 32, "heads": 2, "kv_heads": 1}
    model = random_model(cwm.model.preset("tiny", **shape, head_size=16, max_length=200))
    cwm.model.save(model, folder / "whole", tokenizer)
    cwm.model.save(model, folder / "bare")
    tokenizer.save(folder / "vocabulary")
    return folder


@pytest.fixture
def cwd(folders, tmp_path, monkeypatch):
    """A folder with a program, and links to the models."""
    monkeypatch.chdir(tmp_path)
    Path("program.py").write_text(PROGRAM)
    for name in ("whole", "bare", "vocabulary"):
        Path(name).symlink_to(folders / name)
    return tmp_path


def failure(capsys, *argv):
    assert main(argv) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said
    return said.err


# ---- the vocabulary


def test_a_saved_model_is_all_that_predict_needs(cwd, capsys):
    assert main(["predict", "whole", "program.py", *PREDICT]) == 0
    whole = capsys.readouterr().out
    assert main(["predict", "bare", "program.py", *PREDICT, "--tokenizer", "vocabulary"]) == 0
    assert capsys.readouterr().out == whole
    assert main(["predict", "bare", "program.py", *PREDICT, "--tokenizer", "vocabulary/tokenizer.json"]) == 0
    assert capsys.readouterr().out == whole


@pytest.mark.parametrize(
    "verb",
    [
        ("predict", "bare", "program.py", "--call", "double(2)"),
        ("debug", "bare", "program.py", "--call", "double(2)"),
        ("eval", "output", "bare", "problems.jsonl", "-o", "out"),
        ("serve", "bare", "--port", "0"),
    ],
)
def test_a_missing_vocabulary_is_named_with_the_option(cwd, capsys, verb):
    Path("problems.jsonl").write_text('{"code": "def f(): pass", "input": "", "output": "None"}\n')
    assert failure(capsys, *verb) == (
        f"cwm {verb[0]}: bare has no tokenizer.json: name the model's vocabulary with --tokenizer\n"
    )


def test_debug_takes_the_vocabulary_of_a_local_model(cwd, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    assert main(["debug", "bare", "program.py", "--call", "double(2)", "--tokenizer", "vocabulary"]) == 0
    assert "frame 0 call" in capsys.readouterr().out


def test_a_vocabulary_that_is_too_large_for_the_model(cwd, capsys):
    cwm.Tokenizer.train(["a longer text, a longer text"], 280).save("large")
    message = failure(capsys, "predict", "bare", "program.py", *PREDICT, "--tokenizer", "large")
    assert message.startswith("cwm predict: bare: the tokenizer has ") and "the model only 516" in message
