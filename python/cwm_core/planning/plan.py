"""Plan a training run on paper: FLOPs, memory, communication, time and cost, before renting a GPU.

`plan` is arithmetic on three descriptions: a `ModelConfig`, a `Workload` (what is trained on and how), and a `Cluster`
(GPUs and how the work is split over them). Everything that follows from the definition of the model is exact:
parameters, FLOPs of matrix products, attention by unmasked pairs, bytes of weights, gradients and optimizer states.
Everything that depends on kernels and networks rests on two assumed shares of the peak, `Cluster.utilization` and
`Cluster.network`.

The split is that of `parallelize`: gpus = data x tensor x context ranks. Weights, gradients and optimizer states are
sharded over all ranks (ZeRO-3, arXiv 1910.02054), and the tensor x context ranks of one data rank share a row of
tokens. Pipeline parallelism is not supported.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..model import ModelConfig, preset
from ..model.flops import layer_matrices, layer_vectors, layer_weights, parameters, unmasked
from ..model.loss import GPU_CHUNK_ROWS
from ..tokenizer import Tokenizer
from ..training.config import CHOICES, TrainConfig, checked
from ..training.gpus import GPU
from ..training.run import RUN_KEYS, model_config

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float8": 2}
"""Bytes of an element of activations and gathered weights. With "float8" only the operands of the layers' products are
cast to 8 bits."""

CHECKPOINTING = ("none", "selective", "full")
"""Modes of activation checkpointing."""

USABLE_MEMORY = 0.9
"""Share of a GPU's memory that a plan may fill. The rest is for the CUDA context, NCCL and fragmentation (assumed)."""

_NEWTON_SCHULZ_STEPS = 5  # default of torch.optim.Muon


class DocumentGroup(NamedTuple):
    """Documents of one length."""

    length: int
    """Length in tokens."""
    share: float = 1.0
    """Share of all documents."""
    global_window: int | None = None
    """Window in tokens for layers without a window of their own; None: unlimited."""


@dataclass(frozen=True)
class Workload:
    """Data and settings of a training run.

    Raises:
        ValueError: A value is out of range; the message names the field.
    """

    seq_len: int
    """Tokens per row."""
    step_tokens: int
    """Tokens of one optimizer step over all ranks."""
    tokens: int | None = None
    """Tokens of the whole run; None: only a step is planned."""
    documents: tuple[DocumentGroup, ...] = ()
    """Documents that rows are packed with; empty: documents as long as rows. A document longer than a row counts as cut
    at its end."""
    micro_batch: int = 1
    """Rows that a data rank computes at a time."""
    dtype: str = "bfloat16"
    """Type of matrix products: "float32", "bfloat16", or "float8" with output layer and attention in bfloat16."""
    optimizer: str = "adamw"
    """"adamw" or "muon", as in `TrainConfig.optimizer`."""
    weight_bytes: int = 4
    """Bytes of a stored weight. `Trainer` keeps weights, gradients and optimizer states in float32."""
    gradient_bytes: int = 4
    """Bytes of a gradient, stored and while it is reduced."""
    state_bytes: int = 4
    """Bytes of each optimizer state."""
    activation_checkpointing: str = "none"
    """Activations kept for the backward pass: "none" keeps all that autograd saves; "selective" keeps the outputs of
    matrix products and attention and recomputes norms and the product of SwiGLU; "full" keeps only the input of each
    layer and recomputes the layer (arXiv 2205.05198)."""

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
        documents=(DocumentGroup(8192, 0.35), DocumentGroup(40_960, 0.35, 32_768), DocumentGroup(98_304, 0.3)),
    ),
    "sft": Workload(seq_len=32_768, step_tokens=2**21, tokens=100_000_000_000),
}
"""Supervised stages of the 32 B Code World Model (arXiv 2510.02387): tokens, context and global batch. For mid-training
the report gives the buckets (to 16,385, to 65,537, and longer), the cap of 32,768 in the middle bucket, and that about
30 % of the documents are in the longest. Assumed: a document has the middle length of its bucket, the other two buckets
have equal shares, and the batch of SFT. Without documents, attention is an upper bound."""


@dataclass(frozen=True)
class Cluster:
    """GPUs, and how a model is split over them.

    Raises:
        ValueError: A value is out of range, or the ranks do not divide the GPUs; the message names the field.
    """

    gpu: GPU
    """Kind of GPU."""
    gpus: int = 1
    """Number of GPUs."""
    tensor_parallel: int = 1
    """Ranks that share each matrix product, with sequence parallelism in between (arXiv 2205.05198)."""
    context_parallel: int = 1
    """Ranks that share each row of tokens."""
    utilization: float = 0.45
    """Share of the peak that kernels reach, before communication that they wait for. Assumed: Llama 3 405B reports 0.38
    to 0.43 of the peak for whole steps on H100s (arXiv 2407.21783, table 4)."""
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
        """Number of ranks that read different rows."""
        return self.gpus // (self.tensor_parallel * self.context_parallel)


class Traffic(NamedTuple):
    """Data that one rank receives in one optimizer step."""

    bytes: float
    """Bytes received."""
    seconds: float
    """Time to receive them."""


@dataclass(frozen=True)
class Plan:
    """Result of `plan`. Times are in seconds and for one optimizer step unless stated otherwise."""

    parameters: int
    """Weights of the model."""
    forward_flops: float
    """FLOPs of the forward pass per token, averaged over the documents; a multiply-add counts as two."""
    training_flops: float
    """FLOPs of forward and backward pass per token, without recomputation."""
    memory: dict[str, float]
    """Bytes on one rank by item. Their sum is an upper bound of the peak, because not all items peak at once."""
    memory_total: float
    """Sum of `memory`."""
    fits: bool
    """Whether the total is within `USABLE_MEMORY` of the GPU's memory."""
    micro_batches: int
    """Forward and backward passes of a rank per step."""
    traffic: dict[str, Traffic]
    """Traffic by kind of parallelism: "data", "tensor", "context"."""
    compute_seconds: float
    """Time of matrix products and attention."""
    optimizer_seconds: float
    """Time of the optimizer."""
    step_seconds: float
    """Time of the whole step."""
    tokens_per_second: float
    """Tokens per second over all GPUs."""
    mfu: float
    """Model FLOP utilization: `training_flops` as a share of the peak of the GPUs (arXiv 2204.02311)."""
    steps: int | None
    """Steps of the run; None if its tokens are unknown, as for the fields below."""
    days: float | None
    """Days of the run."""
    gpu_hours: float | None
    """GPU hours of the run."""
    cost: float | None
    """Cost of the run in US dollars."""


def plan(model: ModelConfig, work: Workload, cluster: Cluster) -> Plan:
    """Return the plan of `work` on `model` with `cluster`.

    A step is its micro-batches one after another, then the optimizer. Collectives of weights overlap with computation,
    so the longer of the two counts. Collectives of tensor and context parallelism do not overlap:

        step = max(compute, data) + tensor + context + optimizer

    All ranks are assumed to have equal work.

    Raises:
        ValueError: The model or the step cannot be split this way.
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
            f"{cluster.data} data ranks with {work.micro_batch} x {work.seq_len} tokens each exceed the "
            f"{work.step_tokens} tokens of a step: use more tensor or context ranks, or fewer GPUs"
        )


class ForwardFlops(NamedTuple):
    """FLOPs per token of one forward pass."""

    layers: float
    """Matrix products of the layers."""
    head: float
    """Output layer."""
    attention: float
    """Scores and values of attention."""


def forward_flops(model: ModelConfig, work: Workload) -> ForwardFlops:
    """Return the FLOPs per token of one forward pass.

    A product with a matrix of N weights takes N multiply-adds, 2 N FLOPs (arXiv 2001.08361, section 2.1). Attention
    takes two products, scores and values: 4 x heads x head_dim FLOPs per unmasked pair, summed over layers and averaged
    over the tokens of all documents. A backward pass takes twice as many FLOPs: one product for the gradient of each
    factor. Every token is assumed to have loss; `cross_entropy` skips the output layer for tokens without.
    """
    documents = work.documents or (DocumentGroup(work.seq_len),)
    pairs = tokens = 0.0
    for kind in documents:
        length = min(kind.length, work.seq_len)
        windows = [kind.global_window if window is None else window for window in model.layer_windows]
        pairs += kind.share * sum(unmasked(length, window) for window in windows)
        tokens += kind.share * length
    linear = 2 * model.num_hidden_layers * layer_weights(model)
    return ForwardFlops(
        linear,
        2 * model.vocab_size * model.hidden_size,
        4 * model.num_attention_heads * model.head_dim * pairs / tokens,
    )


def compute_seconds(model: ModelConfig, work: Workload, cluster: Cluster, micro_batches: int) -> float:
    """Return the time of a step's matrix products at `Cluster.utilization` of the peak.

    Counts one forward pass, a backward pass of twice the work, and with full checkpointing the layers once more. The
    last micro-batch costs as much as the others even if the step has fewer tokens.
    """
    linear, head, attention = forward_flops(model, work)
    passes = 4 if work.activation_checkpointing == "full" else 3
    rest = "bfloat16" if work.dtype == "float8" else work.dtype
    peak = cluster.gpu.peak
    seconds = passes * linear / peak[work.dtype] + (3 * head + passes * attention) / peak[rest]
    tokens = micro_batches * work.micro_batch * work.seq_len / (cluster.tensor_parallel * cluster.context_parallel)
    return seconds * tokens / cluster.utilization


def optimizer_states(model: ModelConfig, optimizer: str) -> int:
    """Return the number of optimizer states: two per weight, but one per weight of the matrices that Muon updates.

    The step count that AdamW keeps for each tensor is not counted.
    """
    muon = model.num_hidden_layers * layer_weights(model) if optimizer == "muon" else 0
    return 2 * parameters(model) - muon


def optimizer_seconds(model: ModelConfig, work: Workload, cluster: Cluster) -> float:
    """Return the time to update the weights once.

    Every weight, gradient and state is read, and every weight and state written, at the peak memory bandwidth. Muon
    adds Newton-Schulz iterations for each matrix on one rank: for m rows and n columns with m <= n, A = X Xᵀ, A A and
    the product with X take 4 m² n + 2 m³ FLOPs per iteration. Sending matrices to their ranks is not counted.
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
    """Return the bytes on one rank by item.

    - weights, gradients, optimizer: shards over all GPUs.
    - activations: see `activation_bytes`.
    - loss: the gradient of the input of `cross_entropy`, that of the output layer (twice, while it is scaled), and one
      chunk of logits.
    - communication: the largest two units of FSDP (a layer, the embedding, the output layer) gathered, their gradients
      before reduction, and the exchange of context ranks for one layer. A single GPU gathers nothing; the item then
      counts autocast's copies of the weights.
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
        layer = layer_weights(model) + layer_vectors(model)
        tables = [table] if model.tie_word_embeddings else [table, table]
        largest_two = sum(sorted([*tables, *[layer] * min(2, model.num_hidden_layers)])[-2:])
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

    A layer keeps the inputs of its norms and seven products, q, k, v and the output of attention (twice if context
    ranks exchange it), the input and output of SiLU and the other factor of its product, and in float32 the scales of
    the norms and the sums of the softmax. Attention is one kernel over all documents, as on a GPU, and stores no mask.
    Tensor ranks share everything except the outputs of the norms, which they gather, and the angles of the rotation.
    With checkpointing, one layer is held in full during its backward pass.

    Args:
        model: Shape of the model.
        work: Workload; its dtype and checkpointing count.
        tensor_parallel: Ranks that share each matrix product.
        context_parallel: Ranks that share each row.
        autocast: Whether weights stay float32 and products are cast, as `Trainer` does on one GPU. The residual stream
            is then float32, and each product keeps its own copy of its input. FSDP casts weights instead, and all
            activations have one type.
    """
    size = DTYPE_BYTES[work.dtype]
    q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    qkv_out = (3 if context_parallel > 1 else 2) * q + 2 * kv + (q + kv) * model.qk_norm
    cast = autocast and size < 4
    stream, normed = (4, 5 * size) if cast else (size, 2 * size)
    inputs = 2 * model.hidden_size * stream
    statistics = 4 * (2 + model.num_attention_heads)
    if model.qk_norm:
        statistics += 4 * (model.num_attention_heads + model.num_key_value_heads)
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
    """Return the traffic of a rank per step by kind of parallelism, with ring collectives at their bound.

    - data: for each micro-batch, weights are gathered for the forward and again for the backward pass, and gradients
      are reduced and scattered: (n - 1)/n of their bytes each, with n ranks that shard them (arXiv 1910.02054, section
      7).
    - tensor: two all-reduces of the residual stream per layer forward and two backward (arXiv 1909.08053, section 3),
      and one each for embedding and output layer. An all-reduce is 2 (n - 1)/n of its bytes, the same as a gather
      before a product and a scatter after it (sequence parallelism). Recomputation adds two halves, the gathered
      outputs of the norms, if selective, and the whole forward pass if full.
    - context: queries, keys and values go to the ranks of their heads, and the output of attention to the ranks of its
      tokens (arXiv 2309.14509, section 3.2), forward and again backward. Recomputation sends its part again.
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
    """Return the bytes of one token's queries, keys, values and attention output in one layer.

    Keys and values count once per rank that needs a copy.
    """
    kv_heads = max(model.num_key_value_heads, cluster.context_parallel * cluster.tensor_parallel)
    return 2 * (model.num_attention_heads + kv_heads) * model.head_dim * DTYPE_BYTES[work.dtype]


def _bandwidth(cluster: Cluster, ranks: int, stride: int) -> float:
    """Return the bytes/s that a rank receives in a ring collective of `ranks` ranks that are `stride` GPUs apart.

    Within a node, the links of the GPUs are the bound. Between nodes, a ring enters each node once, and as many rings
    as the node has members run side by side, so that the adapters of all members carry what one of them receives.
    """
    gpu = cluster.gpu
    if ranks * stride <= gpu.per_node:
        return gpu.intra_node
    members = max(1, min(ranks, gpu.per_node // stride))
    return min(gpu.intra_node, members * gpu.inter_node)


class PlanInputs(NamedTuple):
    """Inputs of a plan, read from a run's file."""

    model: ModelConfig
    """Shape of the model."""
    work: Workload
    """Data and settings of the run."""
    tensor_parallel: int
    """Ranks that share each matrix product."""
    context_parallel: int
    """Ranks that share each row."""


def from_toml(
    path: str | os.PathLike[str], gpus: int = 1, tensor_parallel: int | None = None, context_parallel: int | None = None
) -> PlanInputs:
    """Return the plan inputs of a run's file, as for `cwm train`; only `[model]` is needed.

    A step is `grad_accumulation` batches of `batch_size` rows, which the data ranks of `gpus` share; with buckets, the
    bucket with the most tokens. Without `max_steps` only a step is planned. The vocabulary size is that of `tokenizer`
    if the folder exists, else that of the preset.

    Args:
        path: TOML file.
        gpus: Number of GPUs.
        tensor_parallel: Ranks to use instead of those in the file. Defaults to the file's.
        context_parallel: Ranks to use instead of those in the file. Defaults to the file's.

    Raises:
        OSError: A file cannot be read.
        ValueError: The file is malformed; the message names file and key.
    """
    try:
        values = tomllib.loads(Path(path).read_text("utf-8"))
        tables = checked(values, RUN_KEYS)
        if "model" not in tables:
            raise ValueError("'model' is missing")
        model = _model(tables["model"], tables.get("tokenizer", ""))
        rows, seq_len = _largest_batch(tables.get("data", {}))
        training = TrainConfig.from_dict({"max_seconds": 1.0} | tables.get("training", {}))
        tensor = tensor_parallel or training.tensor_parallel
        context = context_parallel or training.context_parallel
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
    return PlanInputs(model, work, tensor, context)


def _largest_batch(table: dict[str, Any]) -> tuple[int, int]:
    """Return rows, and tokens per row, of the table `[data]`; with buckets, of the bucket with the most tokens."""
    sizes = {"seq_len": int, "batch_size": int}
    data = {"seq_len": 1024, "batch_size": 8} | table
    own = checked({key: data[key] for key in sizes}, sizes)
    buckets = [own | {key: bucket[key] for key in sizes if key in bucket} for bucket in data.get("buckets", [])]
    batches = [(bucket["batch_size"], bucket["seq_len"]) for bucket in buckets or [own]]
    return max(batches, key=lambda batch: batch[0] * batch[1])


def _model(table: dict[str, Any], tokenizer: str) -> ModelConfig:
    return model_config(table, Tokenizer.load(tokenizer) if tokenizer and Path(tokenizer).exists() else None)


def stage(name: str) -> tuple[ModelConfig, Workload]:
    """Return the 32 B model and a stage of its training, a key of `STAGES`."""
    return preset("cwm-32b"), STAGES[name]


def parse_documents(text: str) -> tuple[DocumentGroup, ...]:
    """Parse "LENGTH[:SHARE[:WINDOW]],..."; raise ValueError for other text."""
    kinds = []
    for entry in text.split(","):
        try:
            types = zip((int, float, int), entry.split(":"), strict=False)
            kinds.append(DocumentGroup(*(kind(part) for kind, part in types)))
            if entry.count(":") > 2:
                raise ValueError
        except ValueError:
            raise ValueError(f"documents: {entry!r} is not LENGTH[:SHARE[:WINDOW]]") from None
    return tuple(kinds)
