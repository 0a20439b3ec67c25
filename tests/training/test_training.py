"""The trainer: what it optimizes, how it stops and resumes, and its settings."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cwm_core.model import RopeParameters, Transformer, preset
from cwm_core.model.attention import BACKENDS
from cwm_core.training import TrainConfig, Trainer, World, latest, parallelize, trainer
from cwm_core.training.batches import to_device
from cwm_core.training.optimizer import learning_rate_factor


class Loader:
    """Endless random batches of packed documents with a learnable rule, and a resumable state."""

    def __init__(self, seed=0, rows=2, seq_len=24, stop_after=None):
        self.seed, self.rows, self.seq_len, self.stop_after = seed, rows, seq_len, stop_after
        self.index = 0

    def __iter__(self):
        while self.stop_after is None or self.index < self.stop_after:
            rng = np.random.default_rng([self.seed, self.index])
            self.index += 1
            yield self.batch(rng)

    def batch(self, rng):
        shape = (self.rows, self.seq_len)
        tokens = (rng.integers(50, size=(self.rows, 1)) + 7 * np.arange(self.seq_len + 1)) % 50
        cut = self.seq_len // 3
        cu_seqlens = np.ravel([[r * self.seq_len, r * self.seq_len + cut] for r in range(self.rows)])
        arrays = {
            "tokens": tokens[:, :-1].astype(np.int32),
            "targets": tokens[:, 1:].astype(np.int32),
            "loss_mask": rng.random(shape) < 0.7,
            "position_ids": np.tile(np.r_[0:cut, 0 : self.seq_len - cut], (self.rows, 1)).astype(np.int32),
            "cu_seqlens": np.append(cu_seqlens, self.rows * self.seq_len).astype(np.int32),
        }
        return NumpyBatch(arrays)

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


class NumpyBatch(SimpleNamespace):
    def __init__(self, arrays):
        super().__init__(**arrays)

    def to_torch(self, device):
        return SimpleNamespace(**{k: torch.from_numpy(v).to(device) for k, v in self.__dict__.items()})


def small_model(seed=0):
    torch.manual_seed(seed)
    return Transformer(
        preset(
            "tiny",
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            head_dim=8,
            sliding_window=6,
        )
    )


def train(config, loader=None, model=None, on_step=None):
    model, losses = model or small_model(), []

    def note(progress):
        losses.append(progress.loss)
        if on_step:
            on_step(progress)

    reason = Trainer(model, loader or Loader(), config, note).run()
    return model, losses, reason


def assert_same_weights(a, b):
    for (name, x), (_, y) in zip(a.state_dict().items(), b.state_dict().items(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls(optimizer):
    _, losses, reason = train(TrainConfig(max_steps=120, warmup_steps=10, learning_rate=3e-3, optimizer=optimizer))
    assert reason == "finished" and len(losses) == 120
    assert np.mean(losses[-10:]) < 0.75 * losses[0]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kill_at", [1, 7, 12])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, optimizer, kill_at):
    config = {"max_steps": 15, "warmup_steps": 3, "optimizer": optimizer, "grad_accumulation": 2, "checkpoint_every": 1}
    whole, losses, _ = train(TrainConfig(**config, checkpoint_folder=str(tmp_path / "whole")))

    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == kill_at + 1:
            raise Killed  # after an update that no checkpoint has seen

    resumable = TrainConfig(**config, checkpoint_folder=str(tmp_path / "parts"))
    with pytest.raises(Killed):
        train(resumable, on_step=kill)
    assert latest(tmp_path / "parts").name == f"step-{kill_at:09d}"
    resumed, rest, _ = train(resumable, model=small_model(seed=99))
    assert rest == losses[kill_at:]
    assert_same_weights(resumed, whole)


def test_same_seed_same_curve():
    config = TrainConfig(max_steps=10)
    assert train(config)[1] == train(config)[1]


def test_accumulated_batches_equal_one_large_batch():
    """Two batches of different numbers of loss tokens weigh by token, not by batch."""
    config = {"max_steps": 1, "warmup_steps": 0, "grad_clip": 1e9}
    batches = [next(iter(Loader(seed=s))).to_torch("cpu") for s in (1, 2)]
    batches[1].loss_mask[:, 3:] = False
    both = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("tokens", "targets", "loss_mask")}
    both["position_ids"] = torch.cat([b.position_ids for b in batches])
    both["cu_seqlens"] = torch.cat([batches[0].cu_seqlens, batches[1].cu_seqlens[1:] + batches[0].tokens.numel()])
    split, split_loss, _ = train(TrainConfig(**config, grad_accumulation=2), batches)
    joint, joint_loss, _ = train(TrainConfig(**config), [SimpleNamespace(**both)])
    assert split_loss == pytest.approx(joint_loss, rel=1e-5)
    for ours, theirs in zip(split.parameters(), joint.parameters(), strict=True):
        # Adam's first update is about the sign of the gradient, so only clear gradients can agree.
        torch.testing.assert_close(ours, theirs, atol=2.1e-3, rtol=0)


def test_gradient_equals_plain_pytorch():
    """One step of SGD-like bookkeeping by hand: full logits, PyTorch's own cross entropy, one document at a time."""
    batch = next(iter(Loader(seed=3))).to_torch("cpu")
    ours, theirs = small_model(), small_model()
    (ours.loss(**vars(batch)).total / batch.loss_mask.sum()).backward()
    total, flat = 0, {k: v.flatten() for k, v in vars(batch).items()}
    for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        logits = theirs(flat["tokens"][start:end])
        keep = flat["loss_mask"][start:end]
        targets = flat["targets"][start:end].long()
        total = total + torch.nn.functional.cross_entropy(logits[keep], targets[keep], reduction="sum")
    (total / batch.loss_mask.sum()).backward()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name, atol=1e-6, rtol=1e-4)


def test_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    loader = Loader()
    model = small_model()

    def poison(progress):
        if progress.step == 3:
            with torch.no_grad():
                model.lm_head.weight[0, 0] = float("inf")

    with pytest.raises(FloatingPointError, match="step 4"):
        train(TrainConfig(max_steps=9, checkpoint_folder=str(tmp_path)), loader, model, poison)
    assert torch.isfinite(model.embed_tokens.weight).all()
    assert latest(tmp_path) is None


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_attention_is_chosen_by_the_settings(attention):
    config, model = TrainConfig(max_steps=3, attention=attention), small_model()
    world = World.create(config)
    parallelize(model, config, world)
    losses = []
    Trainer(model, Loader(), config, lambda progress: losses.append(progress.loss), world).run()
    assert model.attention_backend == attention
    assert losses == pytest.approx(train(TrainConfig(max_steps=3))[1], rel=1e-5)


def test_ends_with_the_data():
    _, losses, reason = train(TrainConfig(max_steps=9, grad_accumulation=2), Loader(stop_after=5))
    assert reason == "data" and len(losses) == 3


def test_time_budget_ends_the_run():
    seen = []
    train(TrainConfig(max_seconds=1.0, warmup_steps=0), on_step=seen.append)
    assert seen[-1].seconds >= 1.0 > seen[-2].seconds
    assert seen[-1].fraction == 1 and seen[-1].learning_rate < seen[0].learning_rate


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_with_a_checkpoint(tmp_path, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    def interrupt(progress):
        if progress.step == 4:
            os.kill(os.getpid(), number)

    _, losses, reason = train(TrainConfig(max_steps=50, checkpoint_folder=str(tmp_path)), on_step=interrupt)
    assert reason == "signal" and len(losses) == 4
    assert latest(tmp_path).name == "step-000000004"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_learning_rate_schedule():
    config = TrainConfig(max_steps=1010, warmup_steps=10, final_learning_rate=0.01)

    def factor(step, **changes):
        return learning_rate_factor(TrainConfig(**vars(config) | changes), step, step / 1010)

    assert factor(0) == pytest.approx(0.1) and factor(9) == 1 and factor(10) == 1
    assert factor(510) == pytest.approx(0.505) and factor(1010) == pytest.approx(0.01)
    assert factor(260, schedule="linear") == pytest.approx(0.01 + 0.99 * 0.75)
    assert factor(900, schedule="constant") == 1


def test_resuming_with_other_settings_is_refused(tmp_path):
    train(TrainConfig(max_steps=2, checkpoint_folder=str(tmp_path)))
    with pytest.raises(ValueError, match=r"learning_rate = 0\.001, not 0\.5"):
        train(TrainConfig(max_steps=4, learning_rate=0.5, checkpoint_folder=str(tmp_path)))
    assert len(train(TrainConfig(max_steps=4, checkpoint_folder=str(tmp_path)))[1]) == 2


def test_checkpoints_need_a_loader_with_state(tmp_path):
    with pytest.raises(ValueError, match="state_dict"):
        Trainer(small_model(), [], TrainConfig(max_steps=1, checkpoint_folder=str(tmp_path)))


def test_config_from_toml_and_overrides(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('max_steps = 100\nlearning_rate = 1\noptimizer = "muon"\n')
    config = TrainConfig.from_toml(path, ["learning_rate=3e-4", "optimizer=adamw", 'device="cpu"'])
    assert config == TrainConfig(max_steps=100, learning_rate=3e-4, optimizer="adamw")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["learning_rat=1"], "unknown key 'learning_rat'"),
        (["max_steps=1.5"], "max_steps must be int"),
        (["max_steps=true"], "max_steps must be int"),
        (["optimizer=sgd"], "optimizer must be one of"),
        (["grad_clip=-1"], "grad_clip must be positive"),
        (["grad_clip=nan"], "grad_clip must be positive"),
        (["learning_rate=inf"], "learning_rate must be finite, got inf"),
        (["learning_rate=1e400"], "learning_rate must be finite, got inf"),
        (["weight_decay=inf"], "weight_decay must be finite"),
        (["beta2=1.0"], "beta2 must be at least 0 and below 1, got 1.0"),
        (["beta1=nan"], "beta1 must be at least 0 and below 1, got nan"),
        (["learning_rate"], "must be key=value"),
        (["max_steps=0"], "needs max_steps or max_seconds"),
    ],
)
def test_bad_settings_are_named(tmp_path, overrides, message):
    path = tmp_path / "run.toml"
    path.write_text("max_steps = 1\n")
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_toml(path, overrides)


def test_malformed_toml_is_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("max_steps = \n")
    with pytest.raises(ValueError, match=r"run\.toml"):
        TrainConfig.from_toml(path)


def test_importing_the_package_does_not_import_torch():
    code = "import cwm_core, sys; assert 'torch' not in sys.modules; cwm_core.__doc__"
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


class Tokens(NamedTuple):
    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    name: str


@dataclass(frozen=True)
class FrozenTokens:
    tokens: torch.Tensor
    cu_seqlens: torch.Tensor
    name: str


@pytest.mark.parametrize("kind", [Tokens, FrozenTokens, lambda *args: SimpleNamespace(**Tokens(*args)._asdict())])
def test_batches_of_tensors_are_moved_to_the_device(kind):
    batch = kind(torch.zeros(2, 3), torch.tensor([0, 3, 6]), "first")
    moved = to_device(batch, torch.device("meta"))
    assert moved.tokens.is_meta and moved.cu_seqlens.is_meta and moved.tokens.shape == (2, 3)
    assert moved.name == "first" and type(moved) is type(batch)
    assert not batch.tokens.is_meta
    assert to_device(batch, torch.device("cpu")) is batch


def test_the_trainer_moves_batches(monkeypatch):
    """There is one device here, so that this shows the call and not the copy."""
    moved = []

    def note(batch, device):
        moved.append(device)
        return to_device(batch, device)

    monkeypatch.setattr(trainer, "to_device", note)
    batches = [next(iter(Loader())).to_torch("cpu") for _ in range(2)]
    train(TrainConfig(max_steps=2), loader=batches)
    assert moved == [torch.device("cpu")] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_attention_interval": 0}, "full_attention_interval must be at least 1, got 0"),
        ({"full_attention_interval": -2}, "full_attention_interval must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be at least 1"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ],
)
def test_impossible_shapes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        preset("tiny", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factor": 0}, r"rope_parameters\.factor must be a positive number, got 0"),
        ({"rope_theta": -1.0}, r"rope_parameters\.rope_theta must be a positive number"),
        ({"factor": float("inf")}, r"rope_parameters\.factor must be a positive number"),
        (
            {"original_max_position_embeddings": 0},
            r"rope_parameters\.original_max_position_embeddings must be a positive number",
        ),
        ({"low_freq_factor": 4.0}, r"rope_parameters\.low_freq_factor \(4\.0\) must be below"),
    ],
)
def test_impossible_rotations_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        RopeParameters(**changes)


@pytest.mark.parametrize("attention", ["flex", "varlen"])
def test_attention_that_cannot_run_here_is_refused_at_the_start(attention, monkeypatch):
    monkeypatch.setattr(BACKENDS[attention], "unavailable", staticmethod(lambda device: f"not on {device}"))
    config = TrainConfig(max_steps=1, attention=attention)
    with pytest.raises(ValueError, match=f"attention backend '{attention}' cannot run: not on cpu"):
        parallelize(small_model(), config, World.create(config))
