"""Test the stages of training as configurations: the published figures, and all three at a small scale in sequence."""

import json
import tomllib
from pathlib import Path

import cwm_core as cwm
import numpy as np
import pytest
from cwm_core.cli import main
from cwm_core.planning.plan import from_toml, stage
from cwm_core.training import TrainConfig
from cwm_core.training.optimizer import learning_rate_factor
from cwm_core.training.run import RunConfig

CONFIGS = Path(__file__).parents[2] / "configs"
STAGES = ("pretrain", "midtrain", "sft")


@pytest.mark.parametrize("name", STAGES)
def test_the_published_figures_are_those_that_plans_assume(name, tmp_path, monkeypatch):
    """And they fit the GPUs; a stage that starts from the one before needs only its configuration."""
    monkeypatch.chdir(tmp_path)
    model, work = stage(name)
    values = tomllib.loads((CONFIGS / "cwm-32b" / f"{name}.toml").read_text())
    if "folder" in values["model"]:
        folder = Path(values["model"]["folder"])
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(model.to_hf()))
    planned, planned_work, tensor, context = from_toml(CONFIGS / "cwm-32b" / f"{name}.toml", gpus=2048)
    assert (planned_work.seq_len, planned_work.step_tokens) == (work.seq_len, work.step_tokens)
    assert planned_work.tokens == pytest.approx(work.tokens, rel=1e-4)
    assert planned.num_hidden_layers == 64 and model.num_key_value_heads % (tensor * context) == 0
    assert planned.rope_parameters.factor == (1.0 if name == "pretrain" else 16.0)
    assert planned.max_position_embeddings == (8192 if name == "pretrain" else 131_072)
    RunConfig.from_toml(CONFIGS / "cwm-32b" / f"{name}.toml")


def test_the_rate_falls_over_both_stages_as_over_one():
    """A hundredth of the highest at 13 T tokens; where pre-training ends, mid-training begins."""
    stages = {name: RunConfig.from_toml(CONFIGS / "cwm-32b" / f"{name}.toml").training for name in STAGES[:2]}

    def rate(name, tokens):
        config = stages[name]
        return config.learning_rate * learning_rate_factor(config, 10_000, tokens / config.horizon_tokens)

    assert rate("pretrain", 0) == pytest.approx(8e-4)
    assert rate("pretrain", 8e12) == rate("midtrain", stages["midtrain"].start_tokens)
    assert rate("midtrain", 6.5e12) == pytest.approx(8e-4 * (1 + 0.01) / 2)
    assert rate("midtrain", 13e12) == pytest.approx(8e-6)
    assert learning_rate_factor(stages["pretrain"], 999, 0.0) == 0.5


def test_a_horizon_must_reach_beyond_its_start():
    with pytest.raises(ValueError, match="start_tokens \\(5\\) must be below horizon_tokens \\(5\\)"):
        TrainConfig(max_steps=1, start_tokens=5, horizon_tokens=5)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Texts, traces and chats as shards, in the folders that the small configurations name."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    code = "def f(n):\n    total = 0\n    for i in range(n):\n        total += i\n    return total\n"
    with cwm.TraceWriter("all.cwmtraces") as writer:
        for n in rng.integers(1, 12, 60).tolist():
            writer.add(cwm.record_source(code, f"f({n})"))
    texts = [{"text": f"x = {n}\nprint(x + {m})\n" * 4} for n, m in rng.integers(0, 99, (300, 2)).tolist()]
    chats = [
        {"messages": [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"{n + 1}."}]}
        for n in range(200)
    ]
    for name, rows in (("texts", texts), ("chats", chats)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = ["--tokenizer", "vocabulary"]
    assert main(["tokenize", "texts.jsonl", *vocabulary, "--train-vocab", "300", "-o", "shards/text"]) == 0
    assert main(["tokenize", "all.cwmtraces", *vocabulary, "-o", "shards/traces"]) == 0
    assert main(["tokenize", "chats.jsonl", *vocabulary, "-o", "shards/chats"]) == 0
    return tmp_path


def metrics(name):
    return [json.loads(line) for line in Path(f"runs/tiny/{name}/metrics.jsonl").read_text().splitlines()]


def test_the_three_stages_at_a_small_scale(corpus):
    """Each starts from the weights of the one before, at the rate where that ended, and changes what it should."""
    steps = {"pretrain": 6, "midtrain": 4, "sft": 3}
    horizon = 6 * 2 * 512 + 4 * 2 * 512
    for name, count in steps.items():
        small = [f"training.max_steps={count}", "training.warmup_steps=0", "data.seq_len=512"]
        if name != "sft":
            small.append(f"training.horizon_tokens={horizon}")
        if name == "midtrain":
            small += [f"training.start_tokens={6 * 2 * 512}", "model.max_position_embeddings=1024"]
            small.append("data.buckets=[{max_length=128, batch_size=2, global_window=64}, {batch_size=2}]")
        else:
            small.append("data.batch_size=2")
        options = [part for setting in small for part in ("--set", setting)]
        assert main(["train", str(CONFIGS / "tiny" / f"{name}.toml"), *options]) == 0

    rates = [line["learning_rate"] for name in STAGES[:2] for line in metrics(name)]
    whole = TrainConfig(max_steps=10, warmup_steps=0, learning_rate=2e-3)
    assert rates == pytest.approx([2e-3 * learning_rate_factor(whole, step, step / 10) for step in range(10)])
    factors = [json.loads(Path(f"runs/tiny/{name}/config.json").read_text())["rope_parameters"] for name in STAGES]
    assert [rope["factor"] for rope in factors] == [1.0, 4.0, 4.0]
    assert metrics("midtrain")[0]["loss"] < metrics("pretrain")[0]["loss"]
    assert set(metrics("midtrain")[-1]["losses"]) <= {"traces", "rehearsal"}
    assert Path("runs/tiny/sft/model.safetensors").exists()
    # Of chats only the assistant's turns are learned.
    assert all(line["loss_tokens"] < 0.8 * line["tokens"] for line in metrics("sft"))


@pytest.mark.parametrize("name", STAGES)
def test_the_small_configurations_are_valid(name):
    config = RunConfig.from_toml(CONFIGS / "tiny" / f"{name}.toml")
    assert config.output == Path("runs/tiny") / name
