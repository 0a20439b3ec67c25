"""Parallelism against one process: losses, gradients and weights of the same model and batches, cut every way."""

from types import SimpleNamespace

import pytest
import torch
from cwm_core.model import Transformer, initialize, preset
from cwm_core.training import TrainConfig
from cwm_core.training.parallel import clip_grad_norm, parallelize
from cwm_core.training.world import World
from ranks import run_ranks

CONFIG = preset(
    "tiny", vocab_size=52, width=32, ffn_width=48, layers=3, heads=8, kv_heads=4, head_size=8, window=6, global_every=2
)
ROWS, SEQ_LEN, STEPS = 4, 24, 3


def make_batch(step, rows=ROWS):
    """Packed documents of random lengths, some of one token."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(CONFIG.vocab_size, (rows, SEQ_LEN), generator=generator)
    cuts = torch.rand(rows, SEQ_LEN, generator=generator) < 0.2
    cuts[:, 0] = True
    starts = torch.arange(SEQ_LEN).where(cuts, 0).cummax(1).values
    return SimpleNamespace(
        tokens=tokens,
        targets=(tokens * 3 + 1) % CONFIG.vocab_size,
        loss_mask=torch.rand(rows, SEQ_LEN, generator=generator) < 0.7,
        position_ids=torch.arange(SEQ_LEN) - starts,
        cu_seqlens=torch.cat([cuts.flatten().nonzero().flatten(), torch.tensor([rows * SEQ_LEN])]).int(),
    )


def rows_of(batch, rank, ranks):
    """The rows that data rank `rank` of `ranks` reads."""
    size = ROWS // ranks
    first, last = rank * size * SEQ_LEN, (rank + 1) * size * SEQ_LEN
    rows = {name: value[rank * size : (rank + 1) * size] for name, value in vars(batch).items() if name != "cu_seqlens"}
    offsets = batch.cu_seqlens[(batch.cu_seqlens >= first) & (batch.cu_seqlens <= last)] - first
    return SimpleNamespace(**rows, cu_seqlens=offsets)


def train(**settings):
    """Losses, norms, first gradients and last weights of a few steps as the trainer takes them."""
    config = TrainConfig(max_steps=1, **settings)
    world = World.create(config)
    with torch.device("meta"):
        model = Transformer(CONFIG)
    parallelize(model, config, world)
    initialize(model, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    losses, norms, gradients = [], [], {}
    for step in range(STEPS):
        batch = world.slice(rows_of(make_batch(step), world.data_rank, world.data_ranks))
        loss_tokens = world.sum(batch.loss_mask.sum())
        loss = model.loss(batch.tokens, batch.targets, batch.loss_mask, batch.cu_seqlens, batch.position_ids)
        loss = loss.total / loss_tokens
        loss.backward()
        losses.append(world.sum(loss.detach()).item())
        if not step:
            gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
        norms.append(clip_grad_norm(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, gradients, {name: whole(p.detach()) for name, p in model.named_parameters()}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


@pytest.fixture(scope="module")
def alone():
    return train()


def assert_same_course(result, expected):
    losses, norms, gradients, weights = result
    assert losses == pytest.approx(expected[0], rel=1e-5)
    assert norms == pytest.approx(expected[1], rel=1e-5)
    for ours, theirs in ((gradients, expected[2]), (weights, expected[3])):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def several(runs):
    return [train(**settings) for settings in runs]


TWO = [{}, {"context": 2}, {"replicas": 2}, {"tensor": 2}]
FOUR = [{"replicas": 2}, {"context": 4}, {"tensor": 2}, {"tensor": 2, "context": 2}, {"tensor": 4}]


@pytest.mark.parametrize(("ranks", "runs"), [(2, TWO), (4, FOUR)])
def test_training_equals_one_process(alone, ranks, runs):
    for results in run_ranks(several, ranks, runs):
        for settings, result in zip(runs, results, strict=True):
            print(ranks, settings, result[:2], alone[:2])
            assert_same_course(result, alone)
