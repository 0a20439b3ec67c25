"""`dtype = "auto"` becomes the faster dtype, the same on all ranks, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from cwm_core.data import PackedLoader, ShardWriter
from cwm_core.model import Transformer, preset
from cwm_core.training import TrainConfig, Trainer, World, calibration, parallelize
from cwm_core.training.calibration import settle_dtype
from ranks import run_ranks

SHAPE = preset("tiny", vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=1, head_dim=8)
AUTO = TrainConfig(max_steps=1, dtype="auto")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "shards", SHAPE.vocab_size) as writer:
        for start in range(40):
            writer.add([(start + i) % 60 for i in range(30)])
    return str(folder / "shards")


def alone():
    return World(torch.device("cpu"), 1, 1, 1)


def stub(monkeypatch, **speeds):
    monkeypatch.setattr(calibration, "tokens_per_second", lambda model, batch, dtype: speeds[dtype])


@pytest.mark.parametrize(
    ("speeds", "note"),
    [
        ((5600.0, 9300.4), "dtype bfloat16: 9,300 tokens/s on one thread, against 5,600 in float32"),
        ((5600.0, 200.0), "dtype float32: 5,600 tokens/s on one thread, against 200 in bfloat16"),
    ],
)
def test_the_faster_dtype_is_chosen(shards, monkeypatch, speeds, note):
    stub(monkeypatch, float32=speeds[0], bfloat16=speeds[1])
    notes = []
    settled = settle_dtype(AUTO, SHAPE, PackedLoader(shards, 32, batch_size=2), alone(), notes.append)
    assert notes == [note] and settled.dtype == note.split()[1].rstrip(":")


def test_measuring_changes_nothing(shards):
    loader = PackedLoader(shards, 32, batch_size=2)
    next(loader)
    before = loader.state_dict(), torch.get_rng_state().tolist(), torch.get_num_threads()
    speeds = calibration.measure(AUTO, SHAPE, loader)
    assert (loader.state_dict(), torch.get_rng_state().tolist(), torch.get_num_threads()) == before
    assert speeds.keys() == {"float32", "bfloat16"} and all(100 < speed < 1e9 for speed in speeds.values())


def test_a_named_dtype_is_kept_and_a_gpu_needs_no_measurement(shards, monkeypatch):
    monkeypatch.setattr(calibration, "measure", None)  # not to be called
    notes = []
    for config, dtype in (
        (TrainConfig(max_steps=1, dtype="float8"), "float8"),
        (TrainConfig(max_steps=1, dtype="auto", device="cuda"), "bfloat16"),
    ):
        assert settle_dtype(config, SHAPE, PackedLoader(shards, 32), alone(), notes.append).dtype == dtype
    assert notes == ["dtype bfloat16: the device is cuda"]


def settled_by_rank(shards):
    def measure(*_):
        assert torch.distributed.get_rank() == 0
        return {"float32": 1.0, "bfloat16": 2.0}

    calibration.measure = measure
    notes = []
    world = World.create(AUTO)
    loader = PackedLoader(shards, 32, rank=world.data_rank, world_size=world.data_ranks)
    return settle_dtype(AUTO, SHAPE, loader, world, notes.append).dtype, len(notes)


def test_ranks_agree_on_what_rank_0_measures(shards):
    assert run_ranks(settled_by_rank, 2, shards) == [("bfloat16", 1), ("bfloat16", 0)]


def test_nothing_trains_before_the_dtype_is_settled(shards):
    model = Transformer(SHAPE)
    for start in (lambda: Trainer(model, [], AUTO), lambda: parallelize(model, AUTO, alone())):
        with pytest.raises(ValueError, match='dtype "auto" is for cwm train'):
            start()
