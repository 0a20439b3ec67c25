"""A training run on paper: floating-point operations, memory, communication, time and money before a GPU is rented.

`plan` is arithmetic on three descriptions: a `ModelConfig`, a `Workload` (what is trained on, and how), and a `Cluster`
(GPUs and how the work is split over them). What follows from the model's definition is exact: parameters, operations of
matrix products, attention by the positions that are not masked, bytes of weights, gradients and optimizer states. What
depends on kernels and networks rests on two assumed shares of the peak, `Cluster.utilization` and `Cluster.network`.

The split is the one of `parallelize`: gpus = data x tensor x context ranks; weights, gradients and optimizer states are
sharded over all of them (ZeRO-3, arXiv 1910.02054), and a row of tokens is shared by the tensor x context ranks of one
data rank. There is no pipeline.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..model import ModelConfig, preset
from ..model.flops import layer_matrices, layer_weights, parameters, unmasked
from ..model.loss import GPU_CHUNK_ROWS
from ..tokenizer import Tokenizer
from ..training.config import CHOICES, TrainConfig, checked
from ..training.gpus import GPU
from ..training.run import RUN_KEYS, model_config

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float8": 2}
"""Of activations and gathered weights; with "float8" only the operands of the layers' products are cast to 8 bits."""

CHECKPOINTING = ("none", "selective", "full")

USABLE_MEMORY = 0.9
"""Share of a GPU's memory that a plan may fill; the rest is for the CUDA context, NCCL and fragmentation (assumed)."""

_NEWTON_SCHULZ_STEPS = 5  # of torch.optim.Muon, which is made with its default


class Documents(NamedTuple):
    """Documents of one length: their share of all documents, and what caps the window of global layers for them."""

    length: int
    share: float = 1.0
    global_window: int | None = None


@dataclass(frozen=True)
class Workload:
    """What is trained on, and how. Raises ValueError, naming the field, for what cannot be meant."""

    seq_len: int
    """Tokens of a row."""
    step_tokens: int
    """Tokens of one optimizer step, over all ranks."""
    tokens: int | None = None
    """Of the whole run; None: only a step is planned."""
    documents: tuple[Documents, ...] = ()
    """What rows are packed with; empty: documents as long as rows. One longer than a row counts as cut at its end."""
    micro_batch: int = 1
    """Rows that a data rank computes at a time."""
    dtype: str = "bfloat16"
    """Of the matrix products: "float32", "bfloat16", or "float8", where output layer and attention stay bfloat16."""
    optimizer: str = "adamw"
    """"adamw" or "muon", as `TrainConfig.optimizer`."""
    weight_bytes: int = 4
    """Of a stored weight. `Trainer` keeps weights, gradients and optimizer states in float32."""
    gradient_bytes: int = 4
    """Of a gradient, stored and while it is reduced."""
    state_bytes: int = 4
    """Of each optimizer state."""
    activation_checkpointing: str = "none"
    """Activations kept for the backward pass: "none" keeps all that autograd saves; "selective" what matrix products
    and attention put out, while norms and SwiGLU's product are computed again; "full" only the input of each layer,
    which is then computed a second time (arXiv 2205.05198)."""

    def __post_init__(self) -> None:
        """Check the values."""
        choices = {
            "dtype": tuple(DTYPE_BYTES),
            "optimizer": CHOICES["optimizer"],
            "activation_checkpointing": CHECKPOINTING,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("seq_len", "step_tokens", "micro_batch", "weight_bytes", "gradient_bytes", "state_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {self.tokens}")
        for kind in self.documents:
            if kind.length < 1 or not 0 < kind.share < float("inf") or (kind.global_window or 1) < 1:
                raise ValueError(f"documents need a positive length, share and window, got {tuple(kind)}")


STAGES = {
    "pretrain": Workload(seq_len=8192, step_tokens=2**23, tokens=8_000_000_000_000),
    "midtrain": Workload(
        seq_len=131_072,
        step_tokens=2**25,
        tokens=5_000_000_000_000,
        documents=(Documents(8192, 0.35), Documents(40_960, 0.35, 32_768), Documents(98_304, 0.3)),
    ),
    "sft": Workload(seq_len=32_768, step_tokens=2**21, tokens=100_000_000_000),
}
"""The supervised stages of the 32 B Code World Model (arXiv 2510.02387): tokens, context and global batch.

Of mid-training's documents the report gives the buckets (to 16,385, to 65,537, and longer), the cap of 32,768 in the
middle one, and that about 30 % are of the longest; that a document lies in the middle of its bucket, and that the other
two have equal shares, is assumed, as is the batch of SFT. Without documents, attention is an upper bound.
"""


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how a model is split over them. Raises ValueError, naming the field, for what cannot be meant."""

    gpu: GPU
    gpus: int = 1
    tensor_parallel: int = 1
    """Ranks that share each matrix product, with sequence parallelism in between (arXiv 2205.05198)."""
    context_parallel: int = 1
    """Ranks that share each row of tokens."""
    utilization: float = 0.45
    """Share of the peak that kernels reach, before communication that they wait for. Assumed: Llama 3 405B reports
    0.38 to 0.43 of the peak for whole steps on H100s (arXiv 2407.21783, table 4)."""
    network: float = 0.8
    """Share of the links' peak that collectives reach. Assumed."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("gpus", "tensor_parallel", "context_parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("utilization", "network"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if self.gpus % (self.tensor_parallel * self.context_parallel):
            raise ValueError(
                f"gpus ({self.gpus}) must be a multiple of tensor_parallel x context_parallel "
                f"({self.tensor_parallel * self.context_parallel})"
            )

    @property
    def data(self) -> int:
        """Ranks that read different rows."""
        return self.gpus // (self.tensor_parallel * self.context_parallel)


class Traffic(NamedTuple):
    """What one rank receives in one optimizer step."""

    bytes: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """What `plan` found. Times are in seconds and of one optimizer step where nothing else is said."""

    parameters: int
    forward_flops: float
    """A token, on average over the documents; a multiply-add counts as two."""
    training_flops: float
    """A token, forward and backward, without what checkpointing computes again."""
    memory: dict[str, float]
    """Bytes on one rank by item. Their sum is an upper bound of the peak: not all items peak at once."""
    memory_total: float
    fits: bool
    """Whether the total is within `USABLE_MEMORY` of the GPU's."""
    micro_batches: int
    """Forward and backward passes of a rank in one step."""
    traffic: dict[str, Traffic]
    """By kind of parallelism: "data", "tensor", "context"."""
    compute_seconds: float
    optimizer_seconds: float
    step_seconds: float
    tokens_per_second: float
    mfu: float
    """Model FLOP utilization: training_flops as a share of what the GPUs could do in the time (arXiv 2204.02311)."""
    steps: int | None
    days: float | None
    gpu_hours: float | None
    cost: float | None
    """US dollars."""


def plan(model: ModelConfig, work: Workload, cluster: Cluster) -> Plan:
    """Plan `work` of `model` on `cluster`.

    A step is its micro-batches one after another and then the optimizer. The weights' collectives run beside the
    computation, so the longer of the two counts; those of tensor and context parallelism are waited for:

        step = max(compute, data) + tensor + context + optimizer

    All ranks are taken to have equal work. Raises ValueError when the model or the step cannot be split this way.
    """
    _check_split(model, work, cluster)
    rows = cluster.data * work.micro_batch
    micro_batches = -(-work.step_tokens // (rows * work.seq_len))
    linear, head, attention = forward_flops(model, work)
    memory = memory_per_rank(model, work, cluster)
    total = sum(memory.values())
    traffic = communication(model, work, cluster, micro_batches)
    compute = compute_seconds(model, work, cluster, micro_batches)
    optimizer = optimizer_seconds(model, work, cluster)
    step = max(compute, traffic["data"].seconds) + traffic["tensor"].seconds + traffic["context"].seconds + optimizer
    training = 3 * (linear + head + attention)
    peak = cluster.gpus * cluster.gpu.peak[work.dtype]
    steps = None if work.tokens is None else -(-work.tokens // work.step_tokens)
    hours = None if steps is None else steps * step / 3600 * cluster.gpus
    return Plan(
        parameters=parameters(model),
        forward_flops=linear + head + attention,
        training_flops=training,
        memory=memory,
        memory_total=total,
        fits=total <= USABLE_MEMORY * cluster.gpu.memory,
        micro_batches=micro_batches,
        traffic=traffic,
        compute_seconds=compute,
        optimizer_seconds=optimizer,
        step_seconds=step,
        tokens_per_second=work.step_tokens / step,
        mfu=training * work.step_tokens / (step * peak),
        steps=steps,
        days=None if hours is None else hours / cluster.gpus / 24,
        gpu_hours=hours,
        cost=None if hours is None else hours * cluster.gpu.price,
    )


def _check_split(model: ModelConfig, work: Workload, cluster: Cluster) -> None:
    for name in ("num_key_value_heads", "intermediate_size", "vocab_size"):
        if getattr(model, name) % cluster.tensor_parallel:
            raise ValueError(f"tensor_parallel ({cluster.tensor_parallel}) must divide {name} ({getattr(model, name)})")
    ranks = cluster.context_parallel * cluster.tensor_parallel
    if model.num_attention_heads % ranks or (model.num_key_value_heads % ranks and ranks % model.num_key_value_heads):
        raise ValueError(
            f"context_parallel x tensor_parallel ({ranks}) must divide num_attention_heads "
            f"({model.num_attention_heads}), and it or num_key_value_heads ({model.num_key_value_heads}) the other"
        )
    if work.seq_len % (cluster.context_parallel * cluster.tensor_parallel):
        raise ValueError(f"context_parallel x tensor_parallel must divide seq_len ({work.seq_len})")
    tokens = cluster.data * work.micro_batch * work.seq_len
    if tokens > work.step_tokens:
        raise ValueError(
            f"{cluster.data} data ranks with {work.micro_batch} x {work.seq_len} tokens each are more than the "
            f"{work.step_tokens} of a step: more tensor or context ranks, or fewer GPUs, are needed"
        )


def forward_flops(model: ModelConfig, work: Workload) -> tuple[float, float, float]:
    """FLOPs a token of one forward pass: the layers' products, the output layer, attention.

    A product with a matrix of N weights is N multiply-adds, 2 N FLOPs (arXiv 2001.08361, section 2.1). Attention is two
    products, scores and values: 4 x heads x head_dim FLOPs for each unmasked pair, summed over layers and averaged
    over the tokens of all documents. A backward pass takes twice as many: one product for the gradient of each factor.
    Every token is taken to have loss; `cross_entropy` skips the output layer for those without.
    """
    documents = work.documents or (Documents(work.seq_len),)
    pairs = tokens = 0.0
    for kind in documents:
        length = min(kind.length, work.seq_len)
        windows = [kind.global_window if window is None else window for window in model.layer_windows]
        pairs += kind.share * sum(unmasked(length, window) for window in windows)
        tokens += kind.share * length
    linear = 2 * model.num_hidden_layers * layer_weights(model)
    return (
        linear,
        2 * model.vocab_size * model.hidden_size,
        4 * model.num_attention_heads * model.head_dim * pairs / tokens,
    )


def compute_seconds(model: ModelConfig, work: Workload, cluster: Cluster, micro_batches: int) -> float:
    """Time of all products of a step at `Cluster.utilization` of the peak.

    Forward once and backward twice, and with full checkpointing the layers once more. The last micro-batch costs as
    much as the others even where the step has fewer tokens than it holds.
    """
    linear, head, attention = forward_flops(model, work)
    passes = 4 if work.activation_checkpointing == "full" else 3
    rest = "bfloat16" if work.dtype == "float8" else work.dtype
    peak = cluster.gpu.peak
    seconds = passes * linear / peak[work.dtype] + (3 * head + passes * attention) / peak[rest]
    tokens = micro_batches * work.micro_batch * work.seq_len / (cluster.tensor_parallel * cluster.context_parallel)
    return seconds * tokens / cluster.utilization


def optimizer_states(model: ModelConfig, optimizer: str) -> int:
    """Numbers that an optimizer of `make_optimizers` keeps: two a weight, but one for the matrices Muon updates.

    AdamW also keeps a step count for each tensor, which is not counted.
    """
    muon = model.num_hidden_layers * layer_weights(model) if optimizer == "muon" else 0
    return 2 * parameters(model) - muon


def optimizer_seconds(model: ModelConfig, work: Workload, cluster: Cluster) -> float:
    """Time to update the weights once.

    Every weight, gradient and state is read, and every weight and state written, at the peak of the memory. Muon adds
    the Newton-Schulz iterations of its matrices, each on one rank: for m rows and n columns, m the smaller, A = X Xᵀ,
    A A and the product with X take 4 m² n + 2 m³ FLOPs an iteration. Sending matrices to their ranks is not counted.
    """
    states = 2 * work.state_bytes * optimizer_states(model, work.optimizer)
    moved = parameters(model) * (2 * work.weight_bytes + work.gradient_bytes) + states
    seconds = moved / cluster.gpu.memory_bandwidth
    if work.optimizer == "muon":
        sides = [sorted(shape) for shape in layer_matrices(model)]
        flops = model.num_hidden_layers * _NEWTON_SCHULZ_STEPS * sum(4 * m * m * n + 2 * m**3 for m, n in sides)
        seconds += flops / (cluster.gpu.peak["bfloat16"] * cluster.utilization)
    return seconds / cluster.gpus


def memory_per_rank(model: ModelConfig, work: Workload, cluster: Cluster) -> dict[str, float]:
    """Bytes on one rank by item.

    weights, gradients, optimizer: shards of all GPUs. activations: see `activation_bytes`. loss: what `cross_entropy`
    holds, the gradient of its input, that of the output layer (twice, while it is scaled) and one chunk of logits.
    communication: the largest two units of FSDP (a layer, the embedding, the output layer) gathered, their gradients
    before these are reduced, and of one layer what context ranks exchange. On a single GPU, which
    gathers nothing, autocast's copies of the weights take that place.
    """
    count = parameters(model)
    dtype = DTYPE_BYTES[work.dtype]
    tokens = work.micro_batch * work.seq_len / (cluster.tensor_parallel * cluster.context_parallel)
    table = model.vocab_size * model.hidden_size
    chunk = GPU_CHUNK_ROWS * model.vocab_size * (4 + 2 * dtype)  # probabilities in float32; logits and gradient
    if cluster.gpus == 1:
        matrices = model.num_hidden_layers * layer_weights(model) + table
        buffers = float(matrices * dtype) if work.dtype != "float32" else 0.0
    else:
        layer = layer_weights(model) + 2 * model.hidden_size
        largest_two = sum(sorted([table, table, *[layer] * min(2, model.num_hidden_layers)])[-2:])
        buffers = largest_two * (dtype + work.gradient_bytes) / cluster.tensor_parallel
        if cluster.context_parallel > 1:
            buffers += tokens * _heads_bytes(model, work, cluster)
    return {
        "weights": count * work.weight_bytes / cluster.gpus,
        "gradients": count * work.gradient_bytes / cluster.gpus,
        "optimizer": optimizer_states(model, work.optimizer) * work.state_bytes / cluster.gpus,
        "activations": activation_bytes(
            model, work, cluster.tensor_parallel, cluster.context_parallel, cluster.gpus == 1
        )
        * tokens
        * cluster.tensor_parallel,
        "loss": tokens * model.hidden_size * dtype
        + 2 * table * 4 / cluster.tensor_parallel
        + chunk / cluster.tensor_parallel,
        "communication": buffers,
    }


def activation_bytes(
    model: ModelConfig, work: Workload, tensor_parallel: int = 1, context_parallel: int = 1, autocast: bool = False
) -> float:
    """Return the bytes per token that layers keep for the backward pass on one rank, as autograd saves them.

    A layer keeps the inputs of its two norms and seven products, q, k, v and the output of attention (twice where
    context ranks exchange it), the input and output of SiLU and the other factor of its product; in float32 the
    norms' scales and the softmax's sums. Attention is one kernel over all documents, as on a GPU, and stores no mask.
    Tensor ranks share all but the outputs of the norms, which they gather, and the rotation's angles.

    `autocast`: weights stay float32 and products are cast, as `Trainer` does on one GPU. Then the residual stream is
    float32, and each product keeps its own copy of its input. FSDP casts weights instead, and all is of one type.
    With checkpointing, one layer is held in full while its backward pass runs.
    """
    size = DTYPE_BYTES[work.dtype]
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    qkv_out = (3 if context_parallel > 1 else 2) * q + 2 * kv
    cast = autocast and size < 4
    stream, normed = (4, 5 * size) if cast else (size, 2 * size)
    inputs = 2 * model.hidden_size * stream
    statistics = 4 * (2 + model.num_attention_heads)
    layer = (
        model.hidden_size * normed
        + (inputs + (qkv_out + 4 * model.intermediate_size) * size + statistics) / tensor_parallel
    )
    kept = {
        "none": layer,
        "selective": (inputs + (qkv_out + 2 * model.intermediate_size) * size + statistics) / tensor_parallel,
        "full": model.hidden_size * stream / tensor_parallel,
    }[work.activation_checkpointing]
    held = 0.0 if work.activation_checkpointing == "none" else layer - kept
    last_norm = (model.hidden_size * stream + 4) / tensor_parallel
    return model.num_hidden_layers * kept + held + last_norm + 2 * model.head_dim * stream


def communication(model: ModelConfig, work: Workload, cluster: Cluster, micro_batches: int) -> dict[str, Traffic]:
    """What a rank receives in a step, and for how long, by kind of parallelism; ring collectives at their bound.

    data: for each micro-batch, weights are gathered for the forward and again for the backward pass, and gradients
    reduced and scattered: (n - 1)/n of their bytes each, n the ranks that shard them (arXiv 1910.02054, section 7).
    tensor: two all-reduces of the residual stream a layer forward and two backward (arXiv 1909.08053, section 3), one
    each for embedding and output layer; an all-reduce is 2 (n - 1)/n of its bytes, and the same in two halves where
    sequence parallelism gathers before a product and scatters after it. What checkpointing computes again comes on top:
    two halves, the gathered outputs of the norms, if selective, and the whole forward pass if full.
    context: queries, keys and values go to the ranks of their heads, and attention's output to those of its tokens
    (arXiv 2309.14509, section 3.2), forward and again backward; what checkpointing computes again is sent again.
    """
    shards = cluster.gpus // cluster.tensor_parallel
    weights = parameters(model) / cluster.tensor_parallel * (2 * DTYPE_BYTES[work.dtype] + work.gradient_bytes)
    local = work.micro_batch * work.seq_len // cluster.context_parallel
    stream = local * model.hidden_size * DTYPE_BYTES[work.dtype]
    reductions = model.num_hidden_layers * {"none": 4, "selective": 5, "full": 6}[work.activation_checkpointing] + 2
    exchanged = local * _heads_bytes(model, work, cluster) / cluster.tensor_parallel
    exchanges = model.num_hidden_layers * (2 if work.activation_checkpointing == "none" else 3)
    received = {
        "data": weights * (shards - 1) / shards,
        "tensor": reductions * stream * 2 * (cluster.tensor_parallel - 1) / cluster.tensor_parallel,
        "context": exchanges * exchanged * (cluster.context_parallel - 1) / cluster.context_parallel,
    }
    rates = {
        "data": _bandwidth(cluster, shards, cluster.tensor_parallel),
        "tensor": _bandwidth(cluster, cluster.tensor_parallel, 1),
        "context": _bandwidth(cluster, cluster.context_parallel, cluster.tensor_parallel),
    }
    return {
        kind: Traffic(micro_batches * size, micro_batches * size / rates[kind] / cluster.network)
        for kind, size in received.items()
    }


def _heads_bytes(model: ModelConfig, work: Workload, cluster: Cluster) -> int:
    """Of one token's queries, keys, values and output of attention in one layer, with keys and values for each rank."""
    kv_heads = max(model.num_key_value_heads, cluster.context_parallel * cluster.tensor_parallel)
    return 2 * (model.num_attention_heads + kv_heads) * model.head_dim * DTYPE_BYTES[work.dtype]


def _bandwidth(cluster: Cluster, ranks: int, stride: int) -> float:
    """Bytes/s at which a rank receives in a ring collective of `ranks` ranks that are `stride` GPUs apart.

    Within a node the GPUs' own links bound it. Between nodes a ring enters each node once, and as many rings as the
    node has members run side by side, so that the adapters of all members carry what one of them receives.
    """
    gpu = cluster.gpu
    if ranks * stride <= gpu.per_node:
        return gpu.intra_node
    members = max(1, min(ranks, gpu.per_node // stride))
    return min(gpu.intra_node, members * gpu.inter_node)


def from_toml(
    path: str | Path, gpus: int = 1, tensor: int | None = None, context: int | None = None
) -> tuple[ModelConfig, Workload, tuple[int, int]]:
    """Model, workload, and (tensor, context) ranks of a run's file, the one of `cwm train`; only [model] is needed.

    A step is `grad_accumulation` batches of `batch_size` rows, which the data ranks of `gpus` share; of buckets, the
    largest. `tensor` and `context`, unless None, take the place of the file's. Without `max_steps` only a step is
    planned. The vocabulary's size is taken from `tokenizer` where that exists, else from the preset. Raises OSError,
    and ValueError naming file and key.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        tables = checked(values, RUN_KEYS)
        if "model" not in tables:
            raise ValueError("'model' is missing")
        model = _model(tables["model"], tables.get("tokenizer", ""))
        rows, seq_len = _largest_batch(tables.get("data", {}))
        training = TrainConfig.from_dict({"max_seconds": 1.0} | tables.get("training", {}))
        tensor, context = tensor or training.tensor_parallel, context or training.context_parallel
        step = seq_len * rows * training.grad_accumulation
        work = Workload(
            seq_len=seq_len,
            step_tokens=step,
            tokens=step * training.max_steps or None,
            micro_batch=-(-rows * tensor * context // gpus),
            dtype=training.dtype,
            optimizer=training.optimizer,
            activation_checkpointing=training.activation_checkpointing,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return model, work, (tensor, context)


def _largest_batch(table: dict[str, Any]) -> tuple[int, int]:
    """Rows and tokens a row of the table [data], of the bucket with most tokens where it has some."""
    sizes = {"seq_len": int, "batch_size": int}
    data = {"seq_len": 1024, "batch_size": 8} | table
    own = checked({key: data[key] for key in sizes}, sizes)
    buckets = [own | {key: bucket[key] for key in sizes if key in bucket} for bucket in data.get("buckets", [])]
    batches = [(bucket["batch_size"], bucket["seq_len"]) for bucket in buckets or [own]]
    return max(batches, key=lambda batch: batch[0] * batch[1])


def _model(table: dict[str, Any], tokenizer: str) -> ModelConfig:
    return model_config(table, Tokenizer.load(tokenizer) if tokenizer and Path(tokenizer).exists() else None)


def stage(name: str) -> tuple[ModelConfig, Workload]:
    """The 32 B model and a stage of its training, a key of `STAGES`."""
    return preset("cwm-32b"), STAGES[name]


def parse_documents(text: str) -> tuple[Documents, ...]:
    """Read "LENGTH[:SHARE[:WINDOW]],..."; raises ValueError for anything else."""
    kinds = []
    for entry in text.split(","):
        try:
            types = zip((int, float, int), entry.split(":"), strict=False)
            kinds.append(Documents(*(kind(part) for kind, part in types)))
            if entry.count(":") > 2:
                raise ValueError
        except ValueError:
            raise ValueError(f"documents: {entry!r} is not LENGTH[:SHARE[:WINDOW]]") from None
    return tuple(kinds)
