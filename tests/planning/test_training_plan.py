"""Plans of training runs: held against the real modules, optimizers, PyTorch's counter of FLOPs, and saved tensors."""

import dataclasses
import json
import textwrap
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from cwm_core.cli import main
from cwm_core.model import Transformer, cross_entropy, preset
from cwm_core.model.attention.documents import Documents as PackedDocuments
from cwm_core.model.attention.sdpa import Sdpa, causal_mask
from cwm_core.model.flops import parameters, training_flops, unmasked
from cwm_core.model.rotary import rotary
from cwm_core.model.transformer import Layer
from cwm_core.planning.plan import (
    CHECKPOINTING,
    STAGES,
    Cluster,
    DocumentGroup,
    Workload,
    activation_bytes,
    communication,
    forward_flops,
    memory_per_rank,
    optimizer_states,
    parse_documents,
    plan,
    stage,
)
from cwm_core.training import TrainConfig
from cwm_core.training.context_parallel import share_tokens
from cwm_core.training.gpus import GPUS, peak_flops
from cwm_core.training.optimizer import make_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode


def few(max_examples=20):
    return settings(deadline=None, max_examples=max_examples)


@st.composite
def models(draw):
    size = partial(st.integers, 1)
    kv_heads = draw(st.sampled_from([1, 2, 4]))
    features = [
        {}, {"tie_word_embeddings": True}, {"model_type": "qwen2", "qkv_bias": True},
        {"model_type": "qwen3", "qk_norm": True, "attention_bias": True},
    ]  # fmt: skip
    return preset(
        "tiny",
        **draw(st.sampled_from(features)),
        vocab_size=draw(size(40)),
        hidden_size=4 * draw(size(6)),
        intermediate_size=draw(size(40)),
        num_hidden_layers=draw(size(4)),
        num_attention_heads=kv_heads * draw(size(3)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(size(6)),
        sliding_window=draw(size(40)),
        full_attention_interval=draw(size(3)),
    )


def work_of(seq_len, **changes):
    return Workload(**{"seq_len": seq_len, "step_tokens": 2**40, "dtype": "float32"} | changes)


def one_gpu(**changes):
    return Cluster(GPUS["h100"], **changes)


# --- what follows from the model ---


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@given(models())
@few()
def test_parameters_are_those_of_the_modules(config):
    with torch.device("meta"):
        assert parameters(config) == count(Transformer(config))


def test_parameters_of_the_published_model():
    assert parameters(preset("cwm-32b")) == 32_581_097_472
    with torch.device("meta"):
        assert count(Transformer(preset("cwm-32b"))) == 32_581_097_472


@given(st.integers(1, 60), st.none() | st.integers(1, 70))
def test_unmasked_positions_are_those_of_the_mask(length, window):
    assert unmasked(length, window) == causal_mask(length, length, window, torch.device("cpu")).sum()


@given(models(), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=3), st.integers(1, 40))
@few()
def test_attention_is_counted_by_the_mask_of_packed_documents(config, kinds, cap):
    lengths = [length for length, copies in kinds for _ in range(copies)]
    documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    same = documents[:, None] == documents
    n = sum(lengths)
    pairs = sum(
        (causal_mask(n, n, cap if window is None else window, torch.device("cpu")) & same).sum().item()
        for window in config.layer_windows
    )
    work = work_of(64, documents=tuple(DocumentGroup(length, copies, cap) for length, copies in kinds))
    expected = 4 * config.num_attention_heads * config.head_dim * pairs / n
    assert forward_flops(config, work)[2] == pytest.approx(expected, rel=1e-12)


@given(models(), st.integers(1, 3), st.integers(2, 40))
@few(max_examples=8)
def test_flops_are_those_pytorch_counts(config, rows, n):
    """PyTorch counts the scores of masked positions too, n² a layer; all else must agree exactly."""
    linear, head, _ = forward_flops(config, work_of(n))
    attention = 4 * config.num_attention_heads * config.head_dim * n * config.num_hidden_layers
    forward = rows * n * (linear + head + attention)
    model = Transformer(config)
    tokens = torch.randint(config.vocab_size, (rows, n))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    assert counter.get_total_flops() == forward
    with FlopCounterMode(display=False) as counter:
        model.loss(tokens, tokens).total.backward()
    # The embedding's output has a gradient, so that every product of the forward pass has two in the backward pass.
    assert counter.get_total_flops() == 3 * forward


@settings(deadline=None)
@given(models(), st.lists(st.integers(1, 400), min_size=1, max_size=5), st.none() | st.integers(1, 300))
def test_flops_of_documents_are_those_planned(config, lengths, cap):
    """Those of one batch are what a plan says of its documents, a token; without loss the output layer has none."""
    kinds = tuple(DocumentGroup(length, 1.0, cap) for length in lengths)
    linear, head, attention = forward_flops(config, work_of(400, documents=kinds))
    tokens = sum(lengths)
    assert training_flops(config, lengths, tokens, cap) == pytest.approx(3 * (linear + head + attention) * tokens)
    assert training_flops(config, lengths, 0, cap) == pytest.approx(3 * (linear + attention) * tokens)


def test_peaks_of_gpus_by_the_names_they_report():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H200", "float8") == 1979e12
    assert peak_flops("NVIDIA GeForce RTX 3060", "bfloat16") is None


def test_flops_of_a_published_run():
    """Llama 3 405B: 3.8e25 FLOPs for 15.6 T tokens, most of them in rows of 8,192 (arXiv 2407.21783, section 1)."""
    config = preset(
        "cwm-32b",
        hidden_size=16_384,
        intermediate_size=53_248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        layer_windows=(None,) * 126,
    )
    assert parameters(config) == pytest.approx(405e9, rel=0.005)
    assert 3 * sum(forward_flops(config, work_of(8192))) * 15.6e12 == pytest.approx(3.8e25, rel=0.05)


def test_scaling_of_a_published_measurement():
    """Llama 3.1 8B under FSDP2 and torch.compile, 2 rows of 8,192 on each H100 of 8, then of 128: 77.0 and 62.0 GiB,
    6,667 and 6,514 tokens/s a GPU (torchtitan, benchmarks/llama3_h100_202412_torchtitan.md)."""
    llama = preset(
        "cwm-32b",
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        layer_windows=(None,) * 32,
    )
    few_gpus, many_gpus = (
        plan(llama, work_of(8192, step_tokens=n * 2 * 8192, micro_batch=2, dtype="bfloat16"), Cluster(GPUS["h100"], n))
        for n in (8, 128)
    )
    assert (few_gpus.memory_total - many_gpus.memory_total) / 2**30 == pytest.approx(77.0 - 62.0, rel=0.1)
    slower = (many_gpus.tokens_per_second / 128) / (few_gpus.tokens_per_second / 8)
    assert slower == pytest.approx(6514 / 6667, rel=0.03)


# --- what a rank holds ---


@given(models(), st.sampled_from(["adamw", "muon"]))
@few()
def test_weights_gradients_and_states_are_those_of_a_real_step(config, optimizer):
    model = Transformer(config)
    optimizers = make_optimizers(model, TrainConfig(max_steps=1, optimizer=optimizer))
    tokens = torch.randint(config.vocab_size, (1, 5))
    model.loss(tokens, tokens).total.backward()
    for each in optimizers:
        each.step()
    tensors = [t for each in optimizers for state in each.state.values() for t in state.values()]
    states = sum(t.nbytes for t in tensors if isinstance(t, torch.Tensor) and t.dim())  # no step counts
    planned = memory_per_rank(config, work_of(5, optimizer=optimizer), one_gpu())
    assert planned["weights"] == sum(p.nbytes for p in model.parameters())
    assert planned["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert planned["optimizer"] == states == 4 * optimizer_states(config, optimizer)


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def saved_bytes(model, run):
    """Bytes of all storages that autograd keeps while `run` computes, but for the model's own weights."""
    weights = {local(parameter).untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = local(tensor).untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    total = sum(storage.nbytes() for storage in saved.values())
    del output
    return total


# Documents are longer than attention's SHORT, so that the fused kernel computes them, as on a GPU.
SAVING = preset(
    "tiny",
    num_hidden_layers=2,
    hidden_size=48,
    intermediate_size=112,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=64,
    sliding_window=2048,
)


def cpu_only(config, n, dtype, norms):
    """Return the bytes that the CPU keeps beyond a plan.

    Its RMSNorm consists of operations that keep float32 copies of the input and the normalized input. CUDA's fused one
    keeps only the input. The token ids, kept once, are not planned.
    """
    stream = {"float32": 4, "bfloat16": 2, "autocast": 4}[dtype]
    heads = config.num_attention_heads + config.num_key_value_heads
    widths = norms * config.hidden_size + config.num_hidden_layers * heads * config.head_dim * config.qk_norm
    return widths * n * (4 + 4 - stream) + 8 * n


NORMED = dataclasses.replace(SAVING, model_type="qwen3", qk_norm=True, attention_bias=True)


def test_norms_of_queries_and_keys_are_counted():
    model, tokens = Transformer(NORMED), torch.zeros(1, 600, dtype=torch.long)
    planned = activation_bytes(NORMED, work_of(600)) * 600
    assert saved_bytes(model, lambda: model.hidden(tokens)) == planned + cpu_only(NORMED, 600, "float32", norms=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("lengths", [[600], [520, 600]], ids=["one document", "packed"])
def test_activations_are_what_autograd_saves(dtype, lengths):
    model = Transformer(SAVING)
    if dtype == "bfloat16":
        model = model.bfloat16()
    n = sum(lengths)
    tokens = torch.randint(SAVING.vocab_size, (1, n))
    offsets = torch.tensor([0, *lengths]).cumsum(0)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return model.hidden(tokens, offsets)

    kind = "float32" if dtype == "float32" else "bfloat16"
    documents = tuple(DocumentGroup(length) for length in lengths)
    planned = activation_bytes(SAVING, work_of(n, dtype=kind, documents=documents), autocast=dtype == "autocast") * n
    matrices = sum(p.numel() for name, p in model.layers.named_parameters() if p.dim() == 2)
    copies = 2 * matrices if dtype == "autocast" else 0  # planned with the output layer's under "communication"
    outputs = (
        SAVING.num_hidden_layers * SAVING.num_attention_heads * SAVING.head_dim * (4 if dtype == "float32" else 2) * n
    )
    concatenated = outputs if len(lengths) > 1 else 0  # by "sdpa", which has a kernel for each document
    assert saved_bytes(model, run) == planned + cpu_only(SAVING, n, dtype, norms=5) + copies + concatenated


def test_activations_with_full_checkpointing():
    """Layers under `torch.utils.checkpoint` keep their inputs; the plan adds the one that is computed again."""
    model = Transformer(SAVING)
    for layer in model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    n = 600
    tokens = torch.randint(SAVING.vocab_size, (1, n))
    saved = saved_bytes(model, lambda: model.hidden(tokens))
    planned = activation_bytes(SAVING, work_of(n, activation_checkpointing="full")) * n
    one_layer, both = (
        activation_bytes(dataclasses.replace(SAVING, num_hidden_layers=k, layer_windows=()), work_of(n)) * n
        for k in (1, 2)
    )
    again = both - one_layer - 4 * SAVING.hidden_size * n  # a layer without its input
    rotation = 2 * 4 * SAVING.head_dim * n  # held by the function that computes a layer again, where no hook sees it
    assert saved == planned - again - rotation + cpu_only(SAVING, n, "float32", norms=1)


def test_loss_memory_is_what_autograd_saves():
    model = Transformer(SAVING)
    n = 40
    hidden = torch.randn(1, n, SAVING.hidden_size, requires_grad=True)
    saved = saved_bytes(model, lambda: cross_entropy(hidden, model.lm_head.weight, torch.zeros(1, n, dtype=torch.long)))
    assert saved == 4 * (n * SAVING.hidden_size + SAVING.vocab_size * SAVING.hidden_size)


# --- what ranks send each other ---


class Collectives(TorchDispatchMode):
    """Notes the collectives that run, as (name, bytes of the whole that four ranks have shares of)."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if "c10d" in name and "wait" not in name:
            whole = max(t.nbytes for t in args if isinstance(t, torch.Tensor))
            self.seen.append((name, whole * 4 if "all_gather_into" in name else whole))  # which is given a share only
        return func(*args, **(kwargs or {}))

    def received(self, part):
        """Return the bytes that one of four ranks receives: three quarters of the gathered or reduced data."""
        return sum(size for name, size in self.seen if part in name) * 3 / 4


@pytest.fixture
def four_ranks():
    """A device mesh of four ranks, of which only this one exists: collectives run and move nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


def test_fsdp_keeps_and_moves_what_is_planned(four_ranks):
    model = Transformer(SAVING)
    shard = partial(
        fully_shard,
        mesh=four_ranks,
        mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
        reshard_after_forward=True,
    )
    for unit in (model.embed_tokens, *model.layers, [model.norm, model.lm_head], model):
        shard(unit)
    tokens = torch.randint(SAVING.vocab_size, (1, 8))
    with Collectives() as collectives:
        model(tokens).float().sum().backward()
    work, cluster = work_of(8, dtype="bfloat16"), one_gpu(gpus=4)
    held = memory_per_rank(SAVING, work, cluster)
    assert sum(p.to_local().nbytes for p in model.parameters()) == held["weights"]
    assert sum(p.grad.to_local().nbytes for p in model.parameters()) == held["gradients"]
    moved = collectives.received("allgather") + collectives.received("reduce_scatter")
    assert moved == communication(SAVING, work, cluster, 1)["data"].bytes


def test_a_tensor_parallel_layer_keeps_and_moves_what_is_planned(four_ranks):
    config = dataclasses.replace(
        SAVING, num_hidden_layers=1, layer_windows=(), num_attention_heads=8, num_key_value_heads=4
    )
    layer = Layer(config)
    column, row, by_tokens, whole = ColwiseParallel(), RowwiseParallel(output_layouts=Shard(1)), Shard(1), Replicate()
    styles = {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(
            input_layouts=(by_tokens, None, None),
            desired_input_layouts=(whole, None, None),
        ),
        "self_attn.o_proj": row,
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=(by_tokens,), desired_input_layouts=(whole,)),
        "mlp.down_proj": row,
    }
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    parallelize_module(layer, four_ranks, styles | dict.fromkeys(columns, column))
    n = 640
    rotation = rotary(torch.arange(n)[None], config, torch.float32)
    mask = Sdpa(PackedDocuments.from_rows(1, n, torch.device("cpu")), None)
    x = torch.randn(1, n // 4, config.hidden_size, requires_grad=True)
    results = []
    with Collectives() as collectives:
        saved = saved_bytes(layer, lambda: results.append(layer(x, rotation, mask)))
        results[0].sum().backward()
    planned = activation_bytes(config, work_of(n), tensor_parallel=4) * n
    last_norm = (4 * config.hidden_size + 4) * n / 4
    assert saved == planned - last_norm + (cpu_only(config, n, "float32", norms=2) - 8 * n) / 4
    moved = collectives.received("all_gather_into") + collectives.received("reduce_scatter")
    embedding_and_output = 2 * 2 * 3 / 4 * n * config.hidden_size * 4
    planned = communication(config, work_of(n), one_gpu(gpus=4, tensor_parallel=4), 1)["tensor"].bytes
    assert moved == planned - embedding_and_output


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_context_ranks_keep_and_move_what_is_planned(four_ranks, kv_heads):
    config = dataclasses.replace(SAVING, num_attention_heads=8, num_key_value_heads=kv_heads)
    model = Transformer(config)
    share_tokens(model, four_ranks.get_group(), 1)
    n = 640
    own = torch.arange(n // 4)[None]
    results = []
    with Collectives() as collectives:
        documents = torch.tensor([0, n])
        saved = saved_bytes(model, lambda: results.append(model.hidden(torch.zeros_like(own), documents, own)))
        results[0].sum().backward()
    planned = communication(config, work_of(n), one_gpu(gpus=4, context_parallel=4), 1)["context"].bytes
    assert collectives.received("all_to_all") == planned
    planned = (
        activation_bytes(dataclasses.replace(config, num_key_value_heads=4), work_of(n), context_parallel=4) * n / 4
    )
    assert saved == planned + cpu_only(config, n // 4, "float32", norms=5)


def test_links_between_nodes_bound_what_crosses_them():
    """Eight adapters feed a ring over all GPUs of a node; where tensor ranks fill the node, each ring has only one."""
    gpu = GPUS["h100"]

    def rate(gpus, tensor):
        data = communication(preset("cwm-32b"), work_of(8192), Cluster(gpu, gpus, tensor, network=1.0), 1)["data"]
        return data.bytes / data.seconds

    assert rate(8, 1) == pytest.approx(gpu.intra_node)
    assert rate(64, 1) == pytest.approx(8 * gpu.inter_node)
    assert rate(64, 2) == pytest.approx(4 * gpu.inter_node)
    assert rate(64, 8) == pytest.approx(gpu.inter_node)


# --- the plan as a whole ---

CLUSTERS = [(2, 1, 1), (4, 2, 1), (8, 2, 2), (64, 1, 1), (256, 4, 2), (2048, 8, 4)]


@given(
    st.sampled_from(sorted(STAGES)),
    st.sampled_from(CLUSTERS),
    st.sampled_from(CHECKPOINTING),
    st.sampled_from(["adamw", "muon"]),
)
@few(60)
def test_more_ranks_never_need_more_memory_each(name, split, checkpointing, optimizer):
    model, work = stage(name)
    work = dataclasses.replace(work, activation_checkpointing=checkpointing, optimizer=optimizer)
    gpus, tensor, context = split

    def needed(gpus, tensor, context):
        return sum(memory_per_rank(model, work, Cluster(GPUS["h100"], gpus, tensor, context)).values())

    before = needed(gpus, tensor, context)
    assert needed(2 * gpus, tensor, context) <= before
    assert needed(2 * gpus, tensor, 2 * context) <= before
    if tensor < model.num_key_value_heads:
        assert needed(2 * gpus, 2 * tensor, context) <= before


def test_checkpointing_trades_memory_for_time():
    model, work = stage("pretrain")
    cluster = Cluster(GPUS["h100"], 1024)
    plans = [plan(model, dataclasses.replace(work, activation_checkpointing=kind), cluster) for kind in CHECKPOINTING]
    sizes = [each.memory["activations"] for each in plans]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert plans[0].compute_seconds == plans[1].compute_seconds < plans[2].compute_seconds
    assert plans[0].training_flops == plans[2].training_flops
    assert plans[2].mfu < plans[0].mfu


def test_checkpointing_repeats_traffic():
    model, work = stage("pretrain")
    cluster = Cluster(GPUS["h100"], 64, tensor_parallel=4, context_parallel=2)
    none, selective, full = (
        communication(model, dataclasses.replace(work, activation_checkpointing=kind), cluster, 1)
        for kind in CHECKPOINTING
    )
    stream = work.seq_len // 2 * model.hidden_size * 2 * 2 * 3 / 4  # an all-reduce over four ranks
    assert selective["tensor"].bytes - none["tensor"].bytes == model.num_hidden_layers * stream
    assert full["tensor"].bytes - none["tensor"].bytes == 2 * model.num_hidden_layers * stream
    assert selective["context"] == full["context"]
    assert full["context"].bytes == pytest.approx(none["context"].bytes * 3 / 2)
    assert none["data"] == selective["data"] == full["data"]


@pytest.mark.parametrize("name", STAGES)
def test_the_figures_of_a_plan_agree(name):
    model, work = stage(name)
    cluster = Cluster(GPUS["h200"], 512, tensor_parallel=4, context_parallel=2, utilization=0.4)
    result = plan(model, work, cluster)
    assert result.memory_total == sum(result.memory.values())
    assert result.training_flops == 3 * result.forward_flops
    # Steps fill whole micro-batches here and nothing is computed twice, so computation alone reaches the assumed share.
    assert result.mfu * result.step_seconds == pytest.approx(0.4 * result.compute_seconds)
    assert result.tokens_per_second * result.step_seconds == pytest.approx(work.step_tokens)
    assert result.steps * work.step_tokens >= work.tokens > (result.steps - 1) * work.step_tokens
    assert result.days * 86400 == pytest.approx(result.steps * result.step_seconds)
    assert result.cost == pytest.approx(result.days * 24 * 512 * cluster.gpu.price)


def test_float8_speeds_up_only_the_layers_products():
    model, work = stage("pretrain")
    linear, head, attention = forward_flops(model, work)
    cluster = Cluster(GPUS["h100"], 1024)
    bfloat16, float8 = (plan(model, dataclasses.replace(work, dtype=d), cluster) for d in ("bfloat16", "float8"))
    ratio = (linear * 989 / 1979 + head + attention) / (linear + head + attention)
    assert float8.compute_seconds / bfloat16.compute_seconds == pytest.approx(ratio)


def test_splits_that_cannot_be():
    model, work = stage("midtrain")
    for cluster, message in (
        (Cluster(GPUS["h100"], 2048, tensor_parallel=4), "use more tensor or context ranks"),
        (
            Cluster(GPUS["h100"], 2048, tensor_parallel=16, context_parallel=2),
            "tensor_parallel \\(16\\) must divide num_key_value_heads \\(8\\)",
        ),
        (
            Cluster(GPUS["h100"], 2048, tensor_parallel=4, context_parallel=8),
            "context_parallel x tensor_parallel \\(32\\) must divide num_attention_heads \\(48\\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            plan(model, work, cluster)
    with pytest.raises(ValueError, match="must be a multiple of tensor_parallel x context_parallel"):
        Cluster(GPUS["h100"], 12, tensor_parallel=8)
    with pytest.raises(ValueError, match="price must not be negative"):
        dataclasses.replace(GPUS["h100"], price=float("nan"))
    with pytest.raises(ValueError, match="utilization must be above 0"):
        Cluster(GPUS["h100"], utilization=0.0)
    with pytest.raises(ValueError, match="checkpointing must be one of none, selective, full"):
        Workload(8, 8, activation_checkpointing="some")


def test_parse_documents():
    assert parse_documents("100") == (DocumentGroup(100),)
    assert parse_documents("100:2,300:0.5:64") == (DocumentGroup(100, 2.0), DocumentGroup(300, 0.5, 64))
    for text in ("", "a", "100:", "100:1:2:3", "1.5", "100,"):
        with pytest.raises(ValueError, match=r"is not LENGTH\[:SHARE\[:WINDOW\]\]"):
            parse_documents(text)


# --- the command ---

RUN = """
    [model]
    preset = "tiny"
    num_hidden_layers = 2

    [data]
    seq_len = 512
    batch_size = 4

    [training]
    max_steps = 10
    grad_accumulation = 3
    optimizer = "muon"
    dtype = "bfloat16"
"""


def shown(capsys, *argv):
    assert main(["plan", *argv]) == 0
    return capsys.readouterr().out


def test_plan_of_a_run_file(tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(textwrap.dedent(RUN))
    result = json.loads(shown(capsys, str(file), "--gpus", "2", "--json"))
    assert result["parameters"] == parameters(preset("tiny", num_hidden_layers=2))
    assert result["work"]["step_tokens"] == 3 * 4 * 512 and result["work"]["tokens"] == 10 * 3 * 4 * 512
    assert (result["work"]["micro_batch"], result["micro_batches"], result["steps"]) == (2, 3, 10)
    assert (result["work"]["optimizer"], result["work"]["dtype"]) == ("muon", "bfloat16")
    text = shown(capsys, str(file), "--gpus", "2")
    assert "2 x H100 SXM 80 GB" in text and "fits" in text


def test_plan_of_a_run_that_starts_from_a_folder(tmp_path, capsys):
    config = preset("tiny", num_hidden_layers=3)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    (tmp_path / "run.toml").write_text(f"[model]\nfolder = '{tmp_path}'")
    result = json.loads(shown(capsys, str(tmp_path / "run.toml"), "--tokens", "100000", "--json"))
    assert result["parameters"] == parameters(config)
    assert result["steps"] == -(-100_000 // (8 * 1024))


def test_plan_of_the_example_run(capsys):
    """Its shards and vocabulary need not exist."""
    assert "4,096,000 tokens in 1,000 steps" in shown(capsys, str(Path(__file__).parents[2] / "configs" / "tiny.toml"))


@pytest.mark.parametrize("gpu", GPUS)
def test_plan_on_each_gpu(capsys, gpu):
    assert f"512 x {GPUS[gpu].name} = data" in shown(capsys, "pretrain", "--gpu", gpu, "--gpus", "512")


def test_the_documentation_shows_what_is_printed(capsys):
    page = (Path(__file__).parents[2] / "docs/reference/command-line.md").read_text("utf-8")
    command, output = page.split("$ cwm plan ")[1].split("```")[0].split("\n", 1)
    assert shown(capsys, *command.split()) == output


def test_plan_of_a_stage(capsys):
    text = shown(capsys, "midtrain", "--gpus", "2048", "--context-parallel", "8", "--price", "2")
    assert "32,581,097,472 parameters" in text and "at $2.00" in text
    assert "does NOT fit" in shown(capsys, "sft", "--gpus", "64")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[data]\nseq_len = 8", "'model' is missing"),
        ("[model]\npreset = 'tiny'\n[data]\nseq_len = 'x'", "seq_len must be int"),
        ("[model]\nnum_hidden_layers = 2", "either preset or folder"),
        ("[model]\npreset = 'tiny'\n[training]\nnothing = 1", "unknown key 'nothing'"),
        ("[model]\nfolder = 'nowhere'", "nowhere/config.json: No such file or directory"),
        ("[model", "run.toml: "),
    ],
)
def test_mistakes_in_a_run_file(tmp_path, capsys, text, message):
    (tmp_path / "run.toml").write_text(text)
    assert main(["plan", str(tmp_path / "run.toml")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
