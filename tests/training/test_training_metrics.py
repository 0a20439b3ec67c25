"""Test the metrics of a run: losses by source, utilization, waits, and the outputs for them."""

import json
import time

import numpy as np
import pytest
import torch
from cwm_core.data import PackedLoader, ShardWriter
from cwm_core.model import Transformer, preset
from cwm_core.model.flops import training_flops
from cwm_core.training import TrainConfig, Trainer
from cwm_core.training.metrics import Progress, batch_flops, position_sources
from cwm_core.training.report import show_progress, write_jsonl, write_tensorboard
from hypothesis import given, settings
from hypothesis import strategies as st

MODEL = preset(
    "tiny",
    vocab_size=40,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    sliding_window=5,
)


def write_shards(folder, lengths_by_source):
    rng = np.random.default_rng(0)
    for name, lengths in lengths_by_source.items():
        with ShardWriter(folder / name, MODEL.vocab_size) as writer:
            for length in lengths:
                writer.add(rng.integers(MODEL.vocab_size, size=length), rng.random(length) < 0.7)
    return {name: str(folder / name) for name in lengths_by_source}


def train(loader, steps=1, **options):
    torch.manual_seed(0)
    told = []
    Trainer(Transformer(MODEL), loader, TrainConfig(max_steps=steps, warmup_steps=0, **options), told.append).run()
    return told


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.integers(1, 3),
)
def test_losses_by_source_are_those_of_their_documents(tmp_path_factory, first, second, accumulated):
    sources = write_shards(tmp_path_factory.mktemp("shards"), {"a": first, "b": second})
    (step,) = train(PackedLoader(sources, 16, batch_size=2), grad_accumulation=accumulated)
    torch.manual_seed(0)
    model = Transformer(MODEL)
    values = {name: [] for name in sources}
    loader = PackedLoader(sources, 16, batch_size=2)
    for batch in (next(loader).to_torch() for _ in range(accumulated)):
        offsets, tokens, targets, mask = (
            tensor.flatten() for tensor in (batch.cu_seqlens, batch.tokens, batch.targets, batch.loss_mask)
        )
        for begin, end, source in zip(offsets, offsets[1:], batch.source_ids.tolist(), strict=False):
            if source >= 0:
                losses = torch.nn.functional.cross_entropy(
                    model(tokens[begin:end]), targets[begin:end].long(), reduction="none"
                )
                values[loader.sources[source]] += losses[mask[begin:end]].tolist()
    assert step.losses == pytest.approx({name: np.mean(own) for name, own in values.items() if own}, rel=1e-5)
    together = [value for own in values.values() for value in own]
    assert step.loss == pytest.approx(np.mean(together) if together else 0.0, rel=1e-5)
    assert step.loss_tokens == len(together) and step.tokens == accumulated * 32


def test_flops_are_those_of_the_documents_without_padding(tmp_path):
    loader = PackedLoader(write_shards(tmp_path, {"a": [5, 9, 3]}), 12, batch_size=2, epochs=1)
    batch = next(loader)
    assert batch.padding == 7
    expected = training_flops(MODEL, [5, 9, 3], int(batch.loss_mask.sum()), None)
    assert batch_flops(MODEL, batch) == batch_flops(MODEL, batch.to_torch()) == expected
    sources = position_sources(batch.to_torch())
    assert sources.shape == (2, 12) and (sources == -1).sum() == 7


def test_utilization_is_the_share_of_the_peak(tmp_path, monkeypatch):
    monkeypatch.setattr("cwm_core.training.trainer.peak_flops", lambda name, dtype: 1e9)
    sources = write_shards(tmp_path, {"a": [20] * 30})
    loader = PackedLoader(sources, 16)
    flops = [batch_flops(MODEL, batch) for batch, _ in zip(PackedLoader(sources, 16), range(3), strict=False)]
    for step, expected in zip(train(loader, steps=3), flops, strict=True):
        assert step.mfu == pytest.approx(expected / step.step_seconds / 1e9)
        assert step.tokens_per_second == pytest.approx(step.tokens / step.step_seconds)


def test_on_a_device_whose_peak_is_unknown_there_is_no_utilization(tmp_path):
    (step,) = train(PackedLoader(write_shards(tmp_path, {"a": [20] * 30}), 16))
    assert step.mfu is None and step.memory > 10**7


def test_waiting_for_the_loader_is_measured(tmp_path):
    class Slow(PackedLoader):
        def __next__(self):
            time.sleep(0.05)
            return super().__next__()

    sources = write_shards(tmp_path, {"a": [20] * 30})
    slow = train(Slow(sources, 16), grad_accumulation=2)[0]
    quick = train(PackedLoader(sources, 16), grad_accumulation=2)[0]
    assert slow.step_seconds > slow.data_wait >= 0.1 > quick.data_wait


def test_a_loader_of_ones_own_need_not_know_sources(tmp_path):
    batch = next(PackedLoader(write_shards(tmp_path, {"a": [20] * 30}), 16)).to_torch()
    (step,) = train([batch])
    assert step.losses == {} and step.loss > 0


PROGRESS = Progress(
    step=3, loss=1.5, losses={"a": 1.0, "b": 2.0}, grad_norm=0.5, learning_rate=0.1, tokens=100, loss_tokens=80,
    tokens_per_second=50.0, mfu=0.4, memory=10**9, data_wait=0.5, step_seconds=2.0, seconds=6.0, fraction=0.5,
    metrics={"reward": 0.25, "engine/kl": 1e-6},
)  # fmt: skip


def test_jsonl_has_every_field(tmp_path):
    for _ in range(2):
        with write_jsonl(tmp_path / "metrics.jsonl") as write:
            write(PROGRESS)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [vars(PROGRESS)] * 2


def test_tensorboard_has_every_figure(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with write_tensorboard(tmp_path) as write:
        write(PROGRESS)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    names = vars(PROGRESS).keys() - {"step", "losses", "metrics"}
    assert found.keys() == names | {"losses/a", "losses/b", "reward", "engine/kl"}
    assert found["loss"] == [(3, 1.5)] and found["losses/b"] == [(3, 2.0)]


def test_the_console_says_what_matters(capsys):
    with show_progress() as show:
        show(PROGRESS)
    line = capsys.readouterr().err
    for part in (
        "step 3",
        "loss 1.5000  reward 0.25  50 tokens/s",
        "50 tokens/s",
        "MFU 40.0%",
        "1.0 GB",
        "waiting for data 25%",
        "0:00:06 left",
    ):
        assert part in line
