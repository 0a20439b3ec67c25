"""`cwm train --processes`: the curve of one process, interruption, and failures, with one message each."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import cwm_core as cwm
import pytest
from cwm_core.cli import main
from cwm_core.data import ShardWriter
from cwm_core.training import latest
from cwm_core.training.processes import available_processes
from cwm_core.training.run import RunConfig

RUN = """
output = "run"
tokenizer = "vocabulary"

[model]
preset = "tiny"
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8

[data]
seq_len = 96
batch_size = 4
sources.counting = { folder = "shards" }

[training]
max_steps = 8
warmup_steps = 2
optimizer = "muon"
"""
COMMAND = ["train", "run.toml", "--processes", "2"]


@pytest.fixture(autouse=True)
def run_folder(tmp_path, monkeypatch):
    """Make the folder of a run that learns to count."""
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(str((start * 7 + i) % 50) for i in range(30)) for start in range(60)]
    tokenizer = cwm.Tokenizer.train(texts, vocab_size=300)
    tokenizer.save("vocabulary")
    with ShardWriter("shards", tokenizer) as writer:
        for text in texts:
            writer.add(tokenizer.encode(text))
    Path("run.toml").write_text(RUN)


def steps(folder="run"):
    file = Path(folder, "metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def when(is_ready, act):
    """Act in another thread once something is ready."""

    def watch():
        deadline = time.monotonic() + 100
        while not is_ready() and time.monotonic() < deadline:
            time.sleep(0.02)
        act()

    threading.Thread(target=watch, daemon=True).start()


def children():
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def ranks():
    return [pid for pid in children() if b"training.processes" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_an_interrupted_run_resumes_and_follows_the_curve_of_one_process(capfd):
    when(lambda: len(steps()) >= 3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert main([*COMMAND, "--set", "training.max_steps=1000000"]) == 130
    err = capfd.readouterr().err
    assert "cwm train: 2 processes with one thread each\n" in err
    assert err.endswith("\ncwm train: interrupted; the same command resumes from the checkpoint in run\n")
    last = latest("run/checkpoints")
    assert last and int(last.name[5:]) == len(steps()) and not ranks()

    Path("run/checkpoints").rename("interrupted")
    Path("run/metrics.jsonl").unlink()
    assert main([*COMMAND, "-q", "--set", "training.checkpoint_every=4"]) == 0
    assert main(["train", "run.toml", "-q", "--set", "output=alone"]) == 0
    assert [step["loss"] for step in steps()] == pytest.approx([step["loss"] for step in steps("alone")], rel=1e-4)
    assert [step["tokens"] for step in steps()] == [step["tokens"] for step in steps("alone")]
    assert cwm.model.load("run").config == cwm.model.load("alone").config


def test_an_error_of_a_process_is_shown_once(capfd):
    assert main([*COMMAND, "-q", "--set", "data.sources.counting.folder=missing"]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and err.startswith("cwm train: ") and "missing" in err and not ranks()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_killed_process_ends_the_run(capfd):
    when(lambda: len(steps()) >= 2, lambda: os.kill(ranks()[1], signal.SIGKILL))
    assert main([*COMMAND, "-q", "--set", "training.max_steps=1000000"]) == 1
    assert capfd.readouterr().err == "cwm train: process 1 of 2 ended with signal 9\n" and not ranks()


def test_auto_starts_processes_that_share_the_rows_equally(monkeypatch):
    config = RunConfig.from_toml("run.toml")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(3), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_processes(config) == 2  # 3 cannot share 4 rows
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert available_processes(config) == 4
    assert available_processes(RunConfig.from_toml("run.toml", ["training.device=cuda"])) == 1


def test_torchrun_and_gpus_are_refused(capsys, monkeypatch):
    assert main([*COMMAND, "--set", "training.device=cuda"]) == 1
    assert "[training] device 'cuda' needs torchrun" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "0")
    assert main(COMMAND) == 1
    assert capsys.readouterr().err == "cwm train: --processes: torchrun has started the processes already\n"
