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

RUN = """
output = "run"
tokenizer = "vocabulary"

[model]
preset = "tiny"
width = 32
ffn_width = 64
layers = 3
heads = 4
kv_heads = 2
head_size = 8
window = 24

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
    """A run that learns to count on, and where it can be started from."""
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
    assert len(shared) == 40 and result.stderr.count("run: the model and its vocabulary") == 1
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
    again = ["--set", "training.checkpointing=full"]
    assert main(["train", "run.toml", "--set", "output=again", *short, *again]) == 0
    assert [step["loss"] for step in metrics("again")] == [step["loss"] for step in metrics("plain")]


def test_a_stage_takes_weights_but_not_positions_from_the_one_before(run_folder, capsys):
    short = ["--set", "training.max_steps=2"]
    assert main(["train", "run.toml", *short]) == 0
    shape = '[model]\nfolder = "run"\nmax_length = 999\nrope.factor = 2.0\n[data]'
    text = RUN.partition("[model]")[0] + shape + RUN.partition("[data]")[2]
    Path("next.toml").write_text(text.replace('output = "run"', 'output = "next"'))
    assert main(["train", "next.toml", *short, "--set", "training.learning_rate=1e-30"]) == 0
    before, after = (cwm.model.load(folder) for folder in ("run", "next"))
    assert (after.config.max_length, after.config.rope.factor) == (999, 2.0)
    assert after.config.rope.theta == before.config.rope.theta
    for ours, theirs in zip(after.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert main(["train", "next.toml", "--set", "model.layers=2", "--set", "output=x"]) == 1
    assert "[model] unknown key 'layers'; there are folder, max_length, norm_eps, rope" in capsys.readouterr().err


def test_the_script_of_the_documentation_runs(run_folder):
    (script,) = readme.examples("docs/training.md")
    run = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 20 and "{'data': " in run.stdout
    assert cwm.model.load("trained").config.vocab_size == run_folder.vocab_size
    assert cwm.model.load("checkpoints/step-000000020").config.layers == 4
