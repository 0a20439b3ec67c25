"""Runs as `cwm rl` starts them."""

import json
from pathlib import Path

import cwm_core as cwm
import pytest
import torch
from cwm_core.cli import main
from cwm_core.demo.recipe import PATTERN, SPECIAL_TOKENS
from cwm_core.model import Transformer, initialize, preset, save
from cwm_core.rl.run import RLConfig

CONFIGS = Path(__file__).parents[2] / "configs"

RUN = """
output = "run"
tokenizer = "model"
tensorboard = true

[model]
folder = "model"

[tasks.letters]
kind = "letters:make"
count = 4

[[curriculum]]
shares = { letters = 1 }

[data]
seq_len = 32
batch_size = 4

[rollouts]
group_size = 4
groups = 4

[algorithm]
normalize = "batch"

[training]
max_steps = 3
learning_rate = 1e-3
schedule = "constant"
warmup_steps = 0
checkpoint_every = 1
"""

TASK = '''
from cwm_core.rl.tasks import Reward

class Letters:
    """Say a token whose number is even."""

    stop_tokens, max_tokens = frozenset({0}), 4

    def __init__(self, name):
        self.name = name

    def prompt(self, item):
        return [item + 1, item + 2]

    def score(self, item, tokens):
        even = sum(token % 2 == 0 for token in tokens) / len(tokens)
        return Reward(even, ("even",), even == 1)

def make(tokenizer, *, name, count):
    return Letters(name), list(range(count))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = cwm.Tokenizer.train(["x = 1\n"] * 9, 300, pattern=PATTERN, special_tokens=SPECIAL_TOKENS)
    sizes = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    model = Transformer(preset("tiny", vocab_size=tokenizer.vocab_size, **sizes))
    initialize(model, 0)
    save(model, "model", tokenizer)
    Path("run.toml").write_text(RUN)
    Path("letters.py").write_text(TASK)
    return tmp_path


def lines(name):
    return [json.loads(line) for line in Path("run", name).read_text().splitlines()]


def weights(folder):
    return dict(cwm.model.load(folder).named_parameters())


def test_a_run_is_recorded_resumed_and_saved(folder):
    assert main(["rl", "run.toml", "--set", "training.max_steps=2"]) == 0
    assert main(["rl", "run.toml"]) == 0
    steps = lines("metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2, 3]
    for name in ("reward", "solved/letters", "engine/kl", "loss/clipped_high", "age/mean", "seconds/generating"):
        assert all(name in step["metrics"] for step in steps), name
    rollouts = lines("rollouts.jsonl")
    trained = [entry["trained"] for entry in rollouts if "trained" in entry]
    assert trained and len(trained) == len(set(trained))
    assert {entry["task"] for entry in rollouts if "task" in entry} == {"letters"}
    assert list(Path("run/tensorboard").iterdir())
    assert main(["rl", "run.toml", "--set", "output=whole"]) == 0
    resumed, whole = weights("run"), weights("whole")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert any(not torch.equal(resumed[name], before) for name, before in weights("model").items())


@pytest.mark.parametrize("mode", ["processes", "exact"])
def test_modes_of_generation(folder, mode):
    changes = [f"generation.mode={mode}", "training.max_steps=2"]
    if mode == "exact":
        changes += ["data.batch_size=1", "training.grad_accumulation=8", "rollouts.groups=1", "rollouts.fill=false"]
    assert main(["rl", "run.toml", *(part for change in changes for part in ("--set", change))]) == 0
    steps = lines("metrics.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    largest = [step["metrics"]["engine/largest_difference"] for step in steps if step["metrics"].get("engine/compared")]
    assert largest and max(largest) < 1e-4
    if mode == "exact":
        assert largest == [0.0, 0.0]


def failure(capsys, *changes):
    assert main(["rl", "run.toml", *(part for change in changes for part in ("--set", change))]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rollouts.group_size=0", "[rollouts] group_size and groups must be positive"),
        ("algorithm.baseline=median", "[algorithm] baseline must be one of length, mean"),
        ("algorithm.max_lenght=3", "[algorithm] unknown key 'max_lenght'"),
        ("loss.clip_low=2.0", "[loss] clip_low must be between 0 and 1"),
        ("generation.mode=exact", 'mode "exact" needs [data] batch_size = 1'),
        ("generation.mode=vllm", "[generation] mode must be one of engine"),
        ("data.seq_len=128", "[model] max_position_embeddings 64 is less than [data] seq_len"),
        ("tasks.letters.kind=nothing", "[tasks.letters] kind must be one of trace"),
        ("tasks.letters.kind=letters:nobody", "[tasks.letters] letters:nobody: letters has no 'nobody'"),
        ("tasks.letters.count=0", "[tasks.letters] the task has no items"),
        ("curriculum=[{ shares = { digits = 1 } }]", "[curriculum] stage 0: there is no task 'digits'"),
        ("curriculum=[{ step = 1 }]", "[curriculum] 'shares' is missing"),
        ("data.seq_len=0", "[data] seq_len and batch_size must be positive"),
    ],
)
def test_mistakes_are_named(folder, capsys, change, message):
    assert message in failure(capsys, change)


def test_a_run_resumes_as_it_began(folder, capsys):
    assert main(["rl", "run.toml", "--set", "training.max_steps=1"]) == 0
    capsys.readouterr()
    assert "the run to resume has group_size = 4, not 8: keep the setting" in failure(capsys, "rollouts.group_size=8")
    assert "the run to resume has learning_rate" in failure(capsys, "training.learning_rate=0.1")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*/rl*.toml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_configurations_are_valid(path):
    RLConfig.from_toml(path)
