"""Parallelism against one process: losses, gradients and weights of the same model and batches, cut every way."""

import os
import socket
import sys
from dataclasses import dataclass, replace
from functools import partialmethod
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from cwm_core.model import Transformer, initialize, preset
from cwm_core.training import TrainConfig
from cwm_core.training.optimizer import make_optimizers
from cwm_core.training.parallel import clip_grad_norm, parallelize
from cwm_core.training.world import World
from ranks import run_ranks
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CONFIG = preset(
    "tiny",
    vocab_size=52,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    sliding_window=6,
    full_attention_interval=2,
)
TIED = replace(CONFIG, tie_word_embeddings=True)
FEW_KEYS = replace(CONFIG, num_key_value_heads=1)  # fewer heads of keys than context ranks
LLAMA = replace(CONFIG, model_type="llama", attention_bias=True, layer_windows=(None,) * 3)
QWEN2 = replace(TIED, model_type="qwen2", qkv_bias=True)
QWEN3 = replace(CONFIG, model_type="qwen3", qk_norm=True)
ROWS, SEQ_LEN = 4, 24


@dataclass(frozen=True)
class Batch:
    """A batch of a loader."""

    tokens: Tensor
    targets: Tensor
    loss_mask: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor


def make_batch(seed):
    """Packed documents of random lengths, some of one token, with a rule to learn."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(CONFIG.vocab_size, (ROWS, SEQ_LEN), generator=generator)
    begins = torch.rand(ROWS, SEQ_LEN, generator=generator) < 0.2
    begins[:, 0] = True
    starts = torch.arange(SEQ_LEN).where(begins, 0).cummax(1).values
    return Batch(
        tokens=tokens,
        targets=(tokens * 3 + 1) % CONFIG.vocab_size,
        loss_mask=torch.rand(ROWS, SEQ_LEN, generator=generator) < 0.7,
        position_ids=torch.arange(SEQ_LEN) - starts,
        cu_seqlens=torch.cat([begins.flatten().nonzero().flatten(), torch.tensor([ROWS * SEQ_LEN])]).int(),
    )


def rows_of(batch, rank, ranks):
    """The rows that data rank `rank` of `ranks` reads."""
    rows = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    own = {name: value[rows] for name, value in vars(batch).items() if name != "cu_seqlens"}
    offsets = batch.cu_seqlens - rows.start * SEQ_LEN
    inside = (offsets >= 0) & (offsets <= own["tokens"].numel())
    return Batch(**own, cu_seqlens=offsets[inside])


def build(config, world, shape, attention=None):
    with torch.device("meta"):
        model = Transformer(shape)
    model.attention_backend = attention
    parallelize(model, config, world)
    initialize(model, seed=0)
    return model


def train(steps=3, shape=CONFIG, attention=None, **settings):
    """Losses, norms, first gradients, and first and last weights of a few steps as a trainer takes them."""
    config = TrainConfig(max_steps=1, learning_rate=1e-2, **settings)
    world = World.create(config)
    model = build(config, world, shape, attention)
    optimizers = make_optimizers(model, config)
    result = SimpleNamespace(losses=[], norms=[], first=wholes(model), gradients=None)
    for step in range(steps):
        batch = world.slice(rows_of(make_batch(step), world.data_rank, world.data_ranks))
        loss_tokens = world.sum(batch.loss_mask.sum())
        loss = model.loss(**vars(batch)).total / loss_tokens
        loss.backward()
        result.losses.append(world.sum(loss.detach()).item())
        result.gradients = result.gradients or {name: whole(p.grad) for name, p in model.named_parameters()}
        result.norms.append(clip_grad_norm(model.parameters(), 0.5).item())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    result.last = wholes(model)
    if world.context_parallel == 1:
        with torch.no_grad():
            result.logits = model(make_batch(0).tokens)
    return result


def wholes(model):
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()


def several(runs, compiler=None):
    """Return the results of each run, compiled by `compiler`."""
    with pytest.MonkeyPatch.context() as patch:
        if compiler:
            patch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=compiler))
        return [train(**settings) for settings in runs]


def assert_same_course(ours, theirs):
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert ours.norms == pytest.approx(theirs.norms, rel=1e-5)
    if hasattr(ours, "logits"):
        assert (ours.logits - theirs.logits).norm() < 1e-3 * theirs.logits.norm()
    assert ours.last.keys() == theirs.last.keys()
    for name in theirs.last:
        assert torch.equal(ours.first[name], theirs.first[name]), name
        torch.testing.assert_close(
            ours.gradients[name], theirs.gradients[name], atol=1e-7, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
        # Adam divides by the gradient's size: entries near zero are in it as large as others, and nearly all rounding.
        assert (ours.last[name] - theirs.last[name]).norm() < 1e-3 * theirs.last[name].norm(), name


@pytest.fixture(scope="module")
def alone():
    return {shape: train(shape=shape) for shape in (CONFIG, TIED, FEW_KEYS, LLAMA, QWEN2, QWEN3)}


TWO = [
    {},
    {"context_parallel": 2, "activation_checkpointing": "selective"},
    {"context_parallel": 2, "shape": FEW_KEYS},
    {"tensor_parallel": 2, "activation_checkpointing": "selective"},
    {"tensor_parallel": 2, "activation_checkpointing": "full"},
    {"shape": TIED},
    {"shape": TIED, "tensor_parallel": 2},
    {"shape": LLAMA, "tensor_parallel": 2},
    {"shape": QWEN2, "context_parallel": 2},
    {"shape": QWEN3},
    {"shape": QWEN3, "tensor_parallel": 2},
]
FOUR = [
    {"data_parallel_replicas": 2},
    {"data_parallel_replicas": 2, "tensor_parallel": 2},
    {"tensor_parallel": 2},
    {"tensor_parallel": 2, "context_parallel": 2},
    {"context_parallel": 4},
]


@pytest.mark.parametrize(("ranks", "runs"), [(2, TWO), (4, FOUR)])
def test_training_equals_one_process(alone, ranks, runs):
    for results in run_ranks(several, ranks, runs):
        for settings, result in zip(runs, results, strict=True):
            assert_same_course(result, alone[settings.get("shape", CONFIG)])


COMPILED = [
    {"compile": True, "attention": "reference", "tensor_parallel": 2, "activation_checkpointing": "selective"},
    {"compile": True, "context_parallel": 2},
]


def test_compiled_layers_equal_one_process(alone):
    """The graphs, as they are traced and differentiated; making kernels of them takes a minute and is not ours."""
    for result in run_ranks(several, 2, COMPILED, "aot_eager")[0]:
        assert_same_course(result, alone[CONFIG])


class Count(TorchDispatchMode):
    """Count how often operators run."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls[function] = self.calls.get(function, 0) + 1
        return function(*args, **(kwargs or {}))


def test_checkpointing_recomputes_the_documented_operations(alone):
    mm, silu, sdpa = (
        torch.ops.aten.mm.default,
        torch.ops.aten.silu.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    )
    calls = {}
    for mode in ("none", "selective", "full"):
        result = train(activation_checkpointing=mode)
        for name, gradient in alone[CONFIG].gradients.items():
            assert torch.equal(result.gradients[name], gradient), (mode, name)
        model = build(
            TrainConfig(max_steps=1, activation_checkpointing=mode), World.create(TrainConfig(max_steps=1)), CONFIG
        )
        tokens = torch.zeros(600, dtype=torch.long)  # past what the CPU computes without a fused kernel
        with Count() as count:
            model.loss(tokens, tokens).total.backward()
        calls[mode] = [count.calls[operation] for operation in (mm, silu, sdpa)]
    (products, activations, attentions), layers = calls["none"], CONFIG.num_hidden_layers
    assert calls["selective"] == [products, activations + layers, attentions]
    # The recomputation stops before the last product, whose output no gradient needs.
    assert calls["full"] == [products + 6 * layers, activations + layers, 2 * attentions]


def test_low_precision_follows_the_curve(alone):
    pytest.importorskip("torchao")
    exact = alone[CONFIG].losses
    runs = [
        {"dtype": "bfloat16"},
        {"dtype": "float8"},
        {"dtype": "float8", "tensor_parallel": 2, "activation_checkpointing": "selective"},
    ]
    for result in run_ranks(several, 2, runs)[0]:
        assert result.losses == pytest.approx(exact, rel=0.01) and result.losses != pytest.approx(exact, rel=1e-6)
    falling = train(steps=30, dtype="float8").losses
    assert falling[-1] < 0.8 * falling[0] and falling[:3] == pytest.approx(exact, rel=0.01)


def test_muon_orthogonalizes_whole_matrices():
    """Updates differ by rounding, where those of shards by themselves would differ by their own size."""
    expected = train(steps=1, optimizer="muon")
    runs = [{"steps": 1, "optimizer": "muon", **cut} for cut in ({}, {"tensor_parallel": 2})]
    for result in run_ranks(several, 2, runs)[0]:
        for name, first in expected.first.items():
            update = expected.last[name] - first
            assert (result.last[name] - expected.last[name]).norm() < 0.01 * update.norm(), name


def places():
    """How each way to share the ranks numbers them, and what they agree on."""
    seen = []
    for settings in (
        {},
        {"data_parallel_replicas": 2},
        {"tensor_parallel": 2},
        {"context_parallel": 2},
        {"tensor_parallel": 2, "context_parallel": 2},
    ):
        world = World.create(TrainConfig(max_steps=1, **settings))
        seen.append((world.data_rank, world.data_ranks, world.sum(torch.tensor([1 << world.rank, 1])).tolist()))
        assert world.any(world.rank == 3) and not world.any(False)
        assert world.is_main == (world.rank == 0)
        world.close()
        assert dist.is_initialized()  # the group is not its own
    return seen


def test_ranks_of_a_world():
    ranks = run_ranks(places, 4)
    all_ranks = [0b1111, 4]
    for rank, (shards, replicas, tensor, context, both) in enumerate(ranks):
        assert shards == replicas == (rank, 4, all_ranks)
        assert tensor == (rank // 2, 2, [0b0101 << rank % 2, 2])
        assert context == (rank // 2, 2, all_ranks)
        assert both == (0, 1, [0b0101 << rank % 2, 2])


def own_group(port):
    dist.destroy_process_group()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world = World.create(TrainConfig(max_steps=1))
    size = world.sum(torch.ones(())).item()
    world.close()
    assert not dist.is_initialized()
    return world.rank, size


def test_a_world_from_the_environment():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert run_ranks(own_group, 2, port) == [(0, 2), (1, 2)]


def test_one_process_is_a_world():
    world = World.create(TrainConfig(max_steps=1))
    assert (world.rank, world.size, world.is_main, world.data_ranks, world.mesh) == (0, 1, True, 1, None)
    batch = make_batch(0)
    assert world.slice(batch) is batch and world.sum(torch.ones(2)).tolist() == [1, 1] and world.any(True)
    world.close()


def test_slices_of_a_batch_are_its_tokens_in_order():
    batch, shares = make_batch(0), []
    for rank in range(3):
        world = World(torch.device("cpu"), 1, 1, 1)
        world.context_parallel, world.context_rank = 3, rank
        shares += [world.slice(batch), world.slice(SimpleNamespace(**vars(batch), more=5))]
    for name, value in vars(batch).items():
        if name == "cu_seqlens":
            assert all(torch.equal(share.cu_seqlens, value) for share in shares)
        else:
            for kind in (shares[::2], shares[1::2]):
                assert torch.equal(torch.cat([getattr(share, name) for share in kind], 1), value.view(1, -1))
    assert all(share.more == 5 for share in shares[1::2])
    world.context_parallel = 5
    with pytest.raises(ValueError, match="96 tokens of a batch cannot be shared by 5 context ranks"):
        world.slice(batch)


def refused():
    """Return the messages about sizes that cannot be divided by two."""
    odd = replace(CONFIG, vocab_size=51)
    return [
        message(lambda: train(tensor_parallel=4)),
        message(lambda: train(tensor_parallel=2, shape=odd)),
        message(lambda: train(tensor_parallel=2, shape=replace(CONFIG, num_attention_heads=3, num_key_value_heads=3))),
        message(lambda: train(context_parallel=2, shape=replace(CONFIG, num_attention_heads=3, num_key_value_heads=3))),
        message(lambda: train(tensor_parallel=2, dtype="float8", shape=replace(CONFIG, intermediate_size=48))),
        message(lambda: train(compile=True, activation_checkpointing="full")),
        message(tokens_that_do_not_divide),
    ]


def tokens_that_do_not_divide():
    config = TrainConfig(max_steps=1, tensor_parallel=2)
    build(config, World.create(config), CONFIG)(torch.zeros(3, dtype=torch.long)[None])


def message(call):
    with pytest.raises(ValueError) as error:
        call()
    return str(error.value)


def test_sizes_that_do_not_divide_are_refused():
    for messages in run_ranks(refused, 2):
        assert messages[:4] == [
            "2 ranks cannot be divided into replicas (1) x tensor (4) x context (1)",
            "2 tensor ranks cannot share vocab_size = 51",
            "2 tensor ranks cannot share num_attention_heads = 3",
            "2 context ranks cannot share 3 heads with 3 key and value heads (of a tensor rank)",
        ]
        assert messages[4] == "float8 needs intermediate_size a multiple of 16 on each of 2 tensor ranks: 48"
        assert "attention_backend" in messages[5]
        assert messages[6] == "2 tensor ranks cannot share 3 tokens"
    with pytest.raises(ValueError, match=r"1 ranks cannot be divided into replicas \(2\)"):
        train(data_parallel_replicas=2)


def test_float8_without_torchao_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(ImportError, match="torchao"):
        train(dtype="float8")


def test_fresh_weights_depend_on_seed_and_name_alone():
    models = [Transformer(CONFIG) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialize(model, seed)
    same, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(same[name], again[name]) for name in same)
    matrices = [name for name in same if same[name].dim() == 2]
    assert not any(torch.equal(same[name], other[name]) for name in matrices)
    drawn = torch.cat([same[name].flatten() / same[name].std() for name in matrices])
    assert drawn.unique().numel() > 0.99 * drawn.numel()  # no matrix repeats another
    large = Transformer(replace(CONFIG, hidden_size=512, vocab_size=512))
    for seed in (None, 0):
        if seed is not None:
            initialize(large, seed)
        assert large.embed_tokens.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert large.layers[0].mlp.down_proj.weight.std().item() == pytest.approx(0.02 / 6**0.5, rel=0.02)
        assert (large.norm.weight == 1).all()
