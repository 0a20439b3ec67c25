"""Implement `cwm plan`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import OK, add_json, add_verb, positive, write

if TYPE_CHECKING:
    from cwm_core.model import ModelConfig
    from cwm_core.planning.plan import Cluster, Plan, Workload


def add_plan(verbs: Any) -> None:
    """Add `cwm plan`."""
    parser = add_verb(
        verbs,
        _plan,
        "Estimate memory, FLOPs, time and cost of a training run without running it.",
        "cwm plan midtrain --gpu h100 --gpus 2048 --tensor-parallel 8 --context-parallel 4",
        "CONFIG is the file of a run, as for `cwm train`, or a stage of the 32 B model: pretrain, midtrain, sft.\n"
        "docs/reference/command-line.md says which figures are exact and which are assumptions.",
    )
    parser.add_argument("config", metavar="CONFIG", help="TOML file of a run, or pretrain, midtrain, sft")
    parser.add_argument("--gpu", default="h100", choices=("h100", "h200", "b200"), help="kind of GPU (default: h100)")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="number of GPUs (default: 1)")
    parser.add_argument(
        "--tensor-parallel", type=positive, metavar="N", help="tensor-parallel ranks (default: CONFIG's, or 1)"
    )
    parser.add_argument(
        "--context-parallel", type=positive, metavar="N", help="context-parallel ranks (default: CONFIG's, or 1)"
    )
    parser.add_argument(
        "--activation-checkpointing",
        choices=("none", "selective", "full"),
        help="default: CONFIG's, or none",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float8"), help="type of matrix products")
    parser.add_argument("--optimizer", choices=("adamw", "muon"), help="default: CONFIG's, or adamw")
    parser.add_argument("--micro-batch", type=positive, metavar="ROWS", help="rows that a data rank computes at a time")
    parser.add_argument("--step-tokens", type=positive, metavar="N", help="tokens of one step over all GPUs")
    parser.add_argument("--tokens", type=positive, metavar="N", help="tokens of the run")
    parser.add_argument(
        "--documents",
        metavar="LENGTH[:SHARE[:WINDOW]],...",
        help="lengths, shares and global windows of documents",
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.45,
        metavar="X",
        help="share of peak FLOP/s reached (default: 0.45)",
    )
    parser.add_argument(
        "--network",
        type=float,
        default=0.8,
        metavar="X",
        help="share of the links' peak reached (default: 0.8)",
    )
    parser.add_argument("--price", type=float, metavar="DOLLARS", help="price of a GPU hour (default: built in)")
    add_json(parser)


def _plan(args: argparse.Namespace) -> int:
    from cwm_core.planning import plan as planning
    from cwm_core.training.gpus import GPUS

    gpu = GPUS[args.gpu]
    if args.price is not None:
        gpu = dataclasses.replace(gpu, price=args.price)
    if args.config not in planning.STAGES and not Path(args.config).exists():
        raise FileNotFoundError(
            2, f"no such file; expected a TOML file, or one of {', '.join(planning.STAGES)}", args.config
        )
    if args.config in planning.STAGES:
        model, work = planning.stage(args.config)
        split = [args.tensor_parallel or 1, args.context_parallel or 1]
    else:
        model, work, *split = planning.from_toml(args.config, args.gpus, args.tensor_parallel, args.context_parallel)
    tensor, context = split
    cluster = planning.Cluster(gpu, args.gpus, tensor, context, args.mfu, args.network)
    names = ("activation_checkpointing", "dtype", "optimizer", "micro_batch", "step_tokens", "tokens")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.documents is not None:
        changes["documents"] = planning.parse_documents(args.documents)
    work = dataclasses.replace(work, **changes)
    result = planning.plan(model, work, cluster)
    if args.json:
        traffic = {kind: moved._asdict() for kind, moved in result.traffic.items()}
        inputs = {"model": model.to_hf(), "work": dataclasses.asdict(work), "cluster": dataclasses.asdict(cluster)}
        write(json.dumps(inputs | dataclasses.asdict(result) | {"traffic": traffic}, indent=2) + "\n")
    else:
        write(_table(model, work, cluster, result))
    return OK


def _table(model: ModelConfig, work: Workload, cluster: Cluster, plan: Plan) -> str:
    gpu = cluster.gpu
    split = f"data {cluster.data:,} x tensor {cluster.tensor_parallel} x context {cluster.context_parallel}"
    rows = f"{plan.micro_batches:,} x {work.micro_batch} rows of {work.seq_len:,} a data rank"
    waits = "hidden by compute" if plan.traffic["data"].seconds <= plan.compute_seconds else "longer than compute"
    notes = {"data": f", {waits}", "tensor": "", "context": ""}
    share = f"{plan.memory_total / gpu.memory:.0%} of {gpu.memory / 1e9:.0f} GB"
    lines = [
        (
            "model",
            f"{plan.parameters:,} parameters, {model.num_hidden_layers} layers, hidden size {model.hidden_size:,}",
        ),
        ("GPUs", f"{cluster.gpus:,} x {gpu.name} = {split}"),
        ("step", f"{work.step_tokens:,} tokens: {rows}"),
        ("how", f"{work.dtype}, {work.optimizer}, checkpointing {work.activation_checkpointing}"),
        ("FLOPs a token", f"{plan.forward_flops:.4g} forward, {plan.training_flops:.4g} training"),
        ("memory a rank", f"{_gigabytes(plan.memory_total)}, {share}: {'fits' if plan.fits else 'does NOT fit'}"),
        *((f"  {item}", _gigabytes(size)) for item, size in plan.memory.items()),
        ("step time", f"{plan.step_seconds:.4g} s"),
        ("  compute", f"{plan.compute_seconds:.4g} s at {cluster.utilization:.0%} of the peak"),
        *(
            (f"  {kind} traffic", f"{moved.seconds:.4g} s, {_gigabytes(moved.bytes)} a rank{notes[kind]}")
            for kind, moved in plan.traffic.items()
            if moved.bytes
        ),
        ("  optimizer", f"{plan.optimizer_seconds:.4g} s"),
        ("tokens/s", f"{plan.tokens_per_second:,.0f}, {plan.tokens_per_second / cluster.gpus:,.0f} a GPU"),
        ("MFU", f"{plan.mfu:.1%}"),
    ]
    if plan.days is not None and plan.gpu_hours is not None and plan.cost is not None:
        lines += [
            ("run", f"{work.tokens:,} tokens in {plan.steps:,} steps: {_duration(plan.days)}"),
            ("cost", f"{_number(plan.gpu_hours)} GPU hours at ${gpu.price:.2f}: ${_number(plan.cost)}"),
        ]
    return "".join(f"{name:<18}{text}\n" for name, text in lines)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.3f} GB"


def _duration(days: float) -> str:
    """Format a time in the largest fitting unit."""
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if days * 86_400 >= seconds:
            return f"{_number(days * 86_400 / seconds)} {unit}"
    return f"{_number(days * 86_400)} seconds"


def _number(value: float) -> str:
    """Format a number with three digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else "less than 0.001"
