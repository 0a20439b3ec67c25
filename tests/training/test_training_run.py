"""Whole runs, as `cwm train` starts them: on several processes, and what other libraries make of the result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
import readme
import torch
from cwm_core.cli import main
from cwm_core.data import ShardWriter
from cwm_core.inference import Engine
from cwm_core.support.files import locked

RUN = """
output = "run"
tokenizer = "vocabulary"

[model]
preset = "tiny"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 3
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
sliding_window = 24

[data]
seq_len = 96
batch_size = 4
sources.counting = { folder = "shards" }

[training]
max_steps = 40
warmup_steps = 4
learning_rate = 1e-2
checkpoint_every = 10
"""


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """Return a run that learns to count, and the folder to start it in."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    texts = [" ".join(str((start + i) % 50) for i in range(30)) for start in rng.integers(50, size=120).tolist()]
    tokenizer = cwm.Tokenizer.train(texts, vocab_size=320)
    tokenizer.save("vocabulary")
    with ShardWriter("shards", tokenizer) as writer:
        for text in texts:
            writer.add(tokenizer.encode(text))
    Path("run.toml").write_text(RUN)
    return tokenizer


def metrics(folder="run"):
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cwm_core"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.run(
        [*command, "train", "run.toml"], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_torchrun_trains_what_one_process_trains(run_folder):
    assert main(["train", "run.toml", "--set", "output=alone"]) == 0
    result = torchrun()
    assert result.returncode == 0, result.stderr
    alone, shared = metrics("alone"), metrics()
    assert [step["loss"] for step in shared] == pytest.approx([step["loss"] for step in alone], rel=2e-3)
    assert [step["loss"] for step in shared[:5]] == pytest.approx([step["loss"] for step in alone[:5]], rel=1e-5)
    assert len(shared) == 40 and result.stderr.count("wrote the model and its vocabulary to run") == 1
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(320, (1, 60), generator=rng)
    ours, theirs = (cwm.model.load(folder)(tokens).softmax(-1) for folder in ("run", "alone"))
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_the_trained_model_writes_the_same_text_in_transformers(run_folder):
    """Greedily, prompts longer than the window included; and it has learned something to write."""
    transformers = pytest.importorskip("transformers")
    assert main(["train", "run.toml"]) == 0
    assert metrics()[-1]["loss"] < 0.5 * metrics()[0]["loss"]
    engine = Engine(cwm.model.load("run"), run_folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained("run")
    assert type(theirs).__name__ == "CwmForCausalLM"
    for prompt in ("3 4 5", "48 49", "x", " ".join(map(str, range(10, 45)))):
        ids = run_folder.encode(prompt)
        (generation,) = engine.generate([ids], max_new_tokens=20)
        expected = theirs.generate(
            torch.from_numpy(ids)[None].long(), max_new_tokens=20, do_sample=False, use_cache=False
        )[0, len(ids) :]
        assert generation.ids.tolist() == expected.tolist()


def test_metrics_go_to_tensorboard_if_asked(run_folder):
    pytest.importorskip("tensorboard")
    assert main(["train", "run.toml", "--set", "tensorboard=true", "--set", "training.max_steps=2"]) == 0
    assert len(list(Path("run/tensorboard").iterdir())) == 1


def test_layers_computed_again_change_nothing(run_folder):
    short = ["--set", "training.max_steps=3"]
    assert main(["train", "run.toml", "--set", "output=plain", *short]) == 0
    again = ["--set", "training.activation_checkpointing=full"]
    assert main(["train", "run.toml", "--set", "output=again", *short, *again]) == 0
    assert [step["loss"] for step in metrics("again")] == [step["loss"] for step in metrics("plain")]


def test_a_stage_takes_weights_but_not_positions_from_the_one_before(run_folder, capsys):
    short = ["--set", "training.max_steps=2"]
    assert main(["train", "run.toml", *short]) == 0
    shape = '[model]\nfolder = "run"\nmax_position_embeddings = 999\nrope_parameters.factor = 2.0\n[data]'
    text = RUN.partition("[model]")[0] + shape + RUN.partition("[data]")[2]
    Path("next.toml").write_text(text.replace('output = "run"', 'output = "next"'))
    assert main(["train", "next.toml", *short, "--set", "training.learning_rate=1e-30"]) == 0
    before, after = (cwm.model.load(folder) for folder in ("run", "next"))
    assert (after.config.max_position_embeddings, after.config.rope_parameters.factor) == (999, 2.0)
    assert after.config.rope_parameters.rope_theta == before.config.rope_parameters.rope_theta
    for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert main(["train", "next.toml", "--set", "model.num_hidden_layers=2", "--set", "output=x"]) == 1
    keys = "folder, max_position_embeddings, rms_norm_eps, rope_parameters"
    assert f"[model] unknown key 'num_hidden_layers'; expected one of {keys}" in capsys.readouterr().err


def test_the_script_of_the_documentation_runs(run_folder):
    (script,) = readme.examples("docs/guides/train.md")
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 20 and "{'data': " in run.stdout
    assert cwm.model.load("trained").config.vocab_size == run_folder.vocab_size
    assert cwm.model.load("checkpoints/step-000000020").config.num_hidden_layers == 4


def test_the_script_on_parallelism_trains_replicas_as_one_process(run_folder):
    (script,) = readme.examples("docs/guides/parallelism.md")
    small = {'"cuda"': '"cpu"', '"bfloat16"': '"float32"', "8192": "96", "max_steps=1000": "max_steps=4"}
    small['preset("cwm-1b")'] = f'preset("tiny", vocab_size={run_folder.vocab_size}, num_hidden_layers=2)'
    for large, value in small.items():
        assert large in script
        script = script.replace(large, value)
    Path("two.py").write_text(script)
    Path("one.py").write_text(script.replace("replicas=2", "replicas=1").replace('"trained"', '"alone"'))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "two.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    for command in (launch, ["one.py"]):
        run = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert run.returncode == 0, run.stderr
    replicas, alone = (cwm.model.load(folder) for folder in ("trained", "alone"))
    start = cwm.model.Transformer(alone.config)
    cwm.model.initialize(start, seed=0)
    for ours, theirs, before in zip(replicas.parameters(), alone.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        assert not torch.equal(theirs, before)


def test_a_second_run_in_the_output_folder_is_locked_out(run_folder, capsys):
    with locked("run", "training run"):
        assert main(["train", "run.toml"]) == 1
    error = capsys.readouterr().err
    assert "run: another training run is using this folder" in error and "Traceback" not in error
    assert not Path("run/config.json").exists()
    assert main(["train", "run.toml", "--set", "training.max_steps=1"]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.full_attention_interval=0", "[model] full_attention_interval must be at least 1, got 0"),
        ("model.rope_parameters.factor=0.0", "[model] rope_parameters.factor must be a positive number, got 0.0"),
        ("model.max_position_embeddings=64", "[model] max_position_embeddings 64 is less than the 96 tokens of a row"),
        ("model.tie_word_embeddings=3", "[model] tie_word_embeddings must be bool, got 3"),
        ("training.attention=varlen", "[training] attention backend 'varlen' cannot run"),
    ],
)
def test_invalid_runs_are_reported_in_one_sentence(run_folder, capsys, change, message):
    assert main(["train", "run.toml", "--set", change]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_bucket_longer_than_the_model_is_refused(run_folder, capsys):
    buckets = "data.buckets=[{max_length=50, batch_size=2, seq_len=50}, {batch_size=2, seq_len=128}]"
    assert main(["train", "run.toml", "--set", "model.max_position_embeddings=100", "--set", buckets]) == 1
    assert "max_position_embeddings 100 is less than the 128 tokens of a row" in capsys.readouterr().err


def test_embedding_and_output_can_be_tied(run_folder):
    assert main(["train", "run.toml", "--set", "model.tie_word_embeddings=true", "--set", "training.max_steps=1"]) == 0
    assert cwm.model.load("run").config.tie_word_embeddings


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_is_reported_in_one_sentence(run_folder, capsys, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cwm.model.Transformer, "loss", fail)
    assert main(["train", "run.toml"]) == 1
    text = capsys.readouterr().err
    assert "out of memory" in text and "batch_size" in text and len(text.splitlines()) == 1


def test_float8_without_torchao_is_a_sentence(run_folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    assert main(["train", "run.toml", "--set", "training.dtype=float8"]) == 1
    assert "run pip install '.[float8]' in a checkout of cwm-core" in capsys.readouterr().err


def test_another_vocabulary_of_the_same_size_is_refused(run_folder, capsys):
    """For shards that name theirs, for a run to resume, and for the model of another run."""
    short = ["--set", "training.max_steps=2"]
    assert main(["train", "run.toml", *short]) == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["vocabulary_fingerprint"] == run_folder.fingerprint
    other = cwm.Tokenizer.train(["other words than those " * 50], vocab_size=320)
    while other.vocab_size < run_folder.vocab_size:
        names = [*other.special_tokens, f"<|more_{other.vocab_size}|>"]
        other = cwm.Tokenizer.train(["other words than those " * 50], vocab_size=320, special_tokens=names)
    assert other.vocab_size == run_folder.vocab_size
    other.save("other")
    assert main(["train", "run.toml", *short, "--set", "tokenizer=other"]) == 1
    assert "made with another vocabulary" in capsys.readouterr().err

    with ShardWriter("unnamed", other.vocab_size) as writer:
        writer.add(np.arange(60))
    unnamed = ["--set", "data.sources.counting.folder=unnamed", "--set", "tokenizer=other"]
    assert main(["train", "run.toml", "--set", "training.max_steps=4", *unnamed]) == 1
    assert "run holds a run with another vocabulary" in capsys.readouterr().err

    Path("next.toml").write_text(
        RUN.partition("[model]")[0] + '[model]\nfolder = "run"\n[data]' + RUN.partition("[data]")[2]
    )
    assert main(["train", "next.toml", "--set", "output=next", *short, *unnamed]) == 1
    assert "[model] folder run holds a model of another vocabulary" in capsys.readouterr().err
    config.pop("vocabulary_fingerprint")  # a folder of other software: its tokenizer.json tells
    Path("run/config.json").write_text(json.dumps(config))
    assert main(["train", "next.toml", "--set", "output=next", *short, *unnamed]) == 1
    assert "[model] folder run holds a model of another vocabulary" in capsys.readouterr().err
    assert main(["train", "next.toml", "--set", "output=next", *short]) == 0
