"""The file that `cwm train --init` writes, and the warnings about the data of a run."""

import re
from dataclasses import asdict, fields
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.cli import main
from cwm_core.data import Bucket, ShardWriter
from cwm_core.model import ModelConfig, RopeParameters, preset
from cwm_core.training import TrainConfig
from cwm_core.training.checks import corpus_warnings
from cwm_core.training.run import DataConfig, RunConfig, model_config, model_keys
from cwm_core.training.template import template


def test_the_written_file_is_read_with_the_defaults(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "run.toml", "--init"]) == 0
    config = RunConfig.from_toml("run.toml")
    assert config.training == TrainConfig(max_steps=1000, checkpoint_folder="runs/first/checkpoints")
    assert config.data == DataConfig({"all": ("shards", 1.0)}, seq_len=1024)
    assert model_config(config.model, None) == preset("tiny")
    assert main(["train", "run.toml", "--init"]) == 1
    assert "run.toml" in capsys.readouterr().err
    assert Path("run.toml").read_text() == template()


def test_every_commented_key_is_read_with_its_default(tmp_path):
    text = re.sub(r"(?m)^# (?=[a-z_.0-9]+ = )(?!folder)", "", template())
    (tmp_path / "run.toml").write_text(text)
    config = RunConfig.from_toml(tmp_path / "run.toml")
    assert config.training == TrainConfig(max_steps=1000, checkpoint_folder="runs/first/checkpoints")
    assert model_config(config.model, None) == preset("tiny")
    examples = {"epochs": 1, "mask": {"context": 1.0}, "buckets": [Bucket(512, 16, 512), Bucket(None, 8)]}
    assert config.data == DataConfig({"all": ("shards", 1.0)}, **examples)
    assert config.model.keys() == {"preset", "rope_parameters", *model_keys()}
    rope = asdict(preset("tiny").rope_parameters)
    del rope["attention_factor"]  # its default, which follows from others, cannot be written
    assert config.model["rope_parameters"] == rope


def test_every_key_has_a_description():
    lines = template().splitlines()
    for kind in (DataConfig, TrainConfig, RopeParameters, ModelConfig):
        names = {key.name for key in fields(kind)} - {"checkpoint_folder", "attention_factor"}
        if kind is ModelConfig:
            names &= set(model_keys())
        for name in names:
            found = [i for i, line in enumerate(lines) if re.match(rf"(# )?(rope_parameters\.)?{name} = ", line)]
            assert found and all(re.match("# .*[A-Za-z]", lines[at - 1]) for at in found), name


@pytest.fixture
def shards(tmp_path):
    """20 documents of 10 tokens and one of 100, half of each with loss."""
    folder = str(tmp_path / "shards")
    with ShardWriter(folder, 50) as writer:
        for length in [10] * 20 + [100]:
            spans = {"context": [[0, length // 2]]}
            writer.add(np.arange(length) % 50, np.arange(length) % 2 == 0, spans=spans)
    return folder


def test_documents_longer_than_rows_are_reported(shards):
    def found(**settings):
        return corpus_warnings(DataConfig({"all": (shards, 1.0)}, **settings))

    (warning,) = found(seq_len=32)
    assert "source 'all': 1 of 21 documents (33% of its tokens) are longer than their rows, up to 100 tokens" in warning
    assert "21 of 21 documents" in found(seq_len=8)[0]
    assert found(seq_len=99) == []
    assert found(seq_len=32, buckets=[Bucket(50, 1), Bucket(None, 1, 128)]) == []
    assert "1 of 21" in found(seq_len=128, buckets=[Bucket(50, 1), Bucket(None, 1, 64)])[0]


def test_sources_with_few_loss_tokens_are_reported(shards, tmp_path):
    def found(folder, **mask):
        return corpus_warnings(DataConfig({"all": (folder, 1.0)}, seq_len=128, mask=mask))

    assert found(shards) == [] and found(shards, context=1.0) == []
    folder = str(tmp_path / "masked")
    with ShardWriter(folder, 50) as writer:
        writer.add(np.arange(50), np.arange(50) < 2)
    (warning,) = found(folder)
    assert "source 'all': only 4.0% of its tokens carry loss" in warning


def test_cwm_train_prints_warnings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = cwm.Tokenizer.train(["one two three"], 260)
    tokenizer.save("vocabulary")
    with ShardWriter("shards", tokenizer) as writer:
        writer.add(np.arange(200))
    assert main(["train", "run.toml", "--init"]) == 0
    settings = ["data.seq_len=64", "data.batch_size=1", "training.max_steps=1", "model.num_hidden_layers=1"]
    assert main(["train", "run.toml", *(part for setting in settings for part in ("--set", setting))]) == 0
    assert "cwm train: warning: source 'all': 1 of 1 documents (100% of its tokens)" in capsys.readouterr().err
