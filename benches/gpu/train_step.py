"""Training steps of full-width layers on packed documents, beside transformers' CwmForCausalLM on the same batches.

    python benches/gpu/train_step.py --json steps.json     # on a GPU: 8,192, 32,768 and 131,072 tokens
    python benches/gpu/train_step.py --tiny                # a look at the script on a CPU

Ours is `Trainer` on a `PackedLoader`, as `cwm train` runs it: forward, loss in chunks, backward, clipping, AdamW.
Theirs is a plain loop with the same parts, run with each of its attentions that can pack documents; the fastest counts.
Both have weights, gradients and optimizer states in bfloat16, so that four layers of the 32 B model, one global and
three local, fit one GPU with its whole vocabulary, and both compute layers again in the backward pass where they are
told to. They begin with the same weights: the losses of the first step, which are reported, must agree.

FLOPs are `training_flops`: of attention only what the masks leave, and nothing twice. The share of the peak is that of
the maker's figure (MFU), and of what a large product reaches in this run.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
import torch
from cwm_core.data import PackedLoader, ShardWriter
from cwm_core.model import ModelConfig, Transformer, initialize, preset
from cwm_core.training import Progress, TrainConfig, Trainer, World, parallelize
from cwm_core.training.flops import training_flops
from cwm_core.training.metrics import peak_memory

TINY = {"width": 64, "ffn_width": 128, "heads": 4, "kv_heads": 2, "head_size": 16, "window": 64, "vocab_size": 512}

# Attentions of transformers that keep packed documents apart.
THEIR_ATTENTIONS = ("flash_attention_3", "flash_attention_2", "flex_attention", "sdpa")


@dataclass(frozen=True)
class Case:
    """One length of rows, and how its activations are kept."""

    tokens: int
    checkpointing: str


GPU_CASES = (Case(8192, "none"), Case(32_768, "full"), Case(131_072, "full"))
TINY_CASES = (Case(256, "none"), Case(512, "full"))


def main() -> None:
    """Measure every case, print a table and write the figures."""
    options = measure.arguments(__doc__)
    options.add_argument("--steps", type=int, default=8, help="measured, after the first three (default: 8)")
    options.add_argument("--no-compile", action="store_true", help="do not compile our layers")
    args = options.parse_args()
    device = measure.device(args)
    config = preset("cwm-32b", layers=4, **(TINY if args.tiny else {}))
    reached = measure.peak_flops(device)
    rows = []
    for case in TINY_CASES if args.tiny else GPU_CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder), case.tokens, config.vocab_size, args.steps + 4)
            ours = measured(partial(our_steps, config, case, folder, device, args))
            theirs = measured_theirs(config, case, folder, device, args)
        rows.append(row(case, ours, theirs, reached))
        print(measure.line(rows[-1]), flush=True)
    measure.report(args, device, {"peak_flops_measured": reached, "cases": rows})


def write_documents(folder: Path, tokens: int, vocab_size: int, rows: int) -> None:
    """Shards of random tokens in documents of realistic lengths, more than `rows` rows of `tokens` need."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size) as writer:
        for row in range(rows + 1):
            for length in measure.documents(tokens, seed=row):
                writer.add(rng.integers(vocab_size, size=length))


def loader(folder: str, case: Case) -> PackedLoader:
    """One row a batch: documents of a stream, cut where a row is full, so that rows have no padding."""
    return PackedLoader(folder, case.tokens, packing="stream")


def our_steps(
    config: ModelConfig, case: Case, folder: str, device: torch.device, args: argparse.Namespace
) -> list[dict[str, float]]:
    """Seconds, bytes at the peak, FLOPs and seconds waited for the loader of each step."""
    training = TrainConfig(
        max_steps=args.steps + 3,
        learning_rate=1e-5,
        warmup_steps=0,
        dtype="float32" if args.tiny else "bfloat16",
        device=device.type,
        checkpointing=case.checkpointing,
        compile=not (args.tiny or args.no_compile),
    )
    world = World.create(training)
    with torch.device("meta"):
        model = Transformer(config)
    if not args.tiny:
        model = model.bfloat16()
    parallelize(model, training, world)
    initialize(model, 0, world.device)
    flops = [batch_flops(config, batch) for batch, _ in zip(loader(folder, case), range(args.steps + 3), strict=False)]
    steps: list[dict[str, float]] = []

    def note(progress: Progress) -> None:
        figures = {"seconds": progress.step_seconds, "memory": progress.memory, "wait": progress.data_wait}
        steps.append(figures | {"flops": flops[progress.step - 1], "loss": progress.loss})

    Trainer(model, loader(folder, case), training, note, world).run()
    return steps


def batch_flops(config: ModelConfig, batch: Any) -> float:
    """Of the batch's documents."""
    return training_flops(config, np.diff(batch.cu_seqlens).tolist(), int(batch.loss_mask.sum()), None)


def measured_theirs(
    config: ModelConfig, case: Case, folder: str, device: torch.device, args: argparse.Namespace
) -> dict[str, Any]:
    """The fastest of their attentions, with what kept the others from running."""
    tried = {}
    for attention in THEIR_ATTENTIONS:
        tried[attention] = measured(partial(their_steps, config, case, folder, device, args, attention))
    ran = {name: figures for name, figures in tried.items() if "seconds" in figures}
    failed = {name: figures["failed"] for name, figures in tried.items() if "failed" in figures}
    if not ran:
        return {"failed": failed}
    name, figures = min(ran.items(), key=lambda item: item[1]["seconds"])
    return figures | {"attention": name, "others": failed}


def their_steps(
    config: ModelConfig, case: Case, folder: str, device: torch.device, args: argparse.Namespace, attention: str
) -> list[dict[str, float]]:
    """The same figures of `CwmForCausalLM`, from the same weights."""
    from transformers import CwmConfig, CwmForCausalLM

    dtype = torch.float32 if args.tiny else torch.bfloat16
    shape = {key: value for key, value in config.to_hf().items() if key not in ("architectures", "eos_token_id")}
    with device:
        model = CwmForCausalLM._from_config(
            CwmConfig(**shape, bos_token_id=0, use_cache=False), attn_implementation=attention, dtype=dtype
        )
    with torch.device("meta"):
        start = Transformer(config).to(dtype)
    initialize(start, 0, device)
    renamed = {f"model.{name}".replace("model.lm_head", "lm_head"): weight for name, weight in start.named_parameters()}
    model.load_state_dict(renamed)
    del start, renamed
    model.train()
    if case.checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = []
    for _, batch in zip(range(args.steps + 3), loader(folder, case), strict=False):
        began = time.perf_counter()
        tensors = batch.to_torch(device)
        labels = torch.where(tensors.loss_mask, tensors.targets, -100).long()
        inputs = {"input_ids": tensors.tokens.long(), "position_ids": tensors.position_ids.long()}
        # Shifted already: labels are the next tokens.
        loss = model(**inputs, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        measure.synchronize(device)
        figures = {"seconds": time.perf_counter() - began, "memory": peak_memory(device), "wait": 0.0}
        steps.append(figures | {"flops": batch_flops(config, batch), "loss": loss.item()})
    return steps


def measured(run: Callable[[], list[dict[str, float]]]) -> dict[str, Any]:
    """Figures of a run's steps but the first three, or the reason why it failed; memory is freed afterwards."""
    try:
        first, *rest = run()
        steps = rest[2:]
        seconds = statistics.median(step["seconds"] for step in steps)
        return {
            "seconds": seconds,
            "flops_per_second": sum(step["flops"] for step in steps) / sum(step["seconds"] for step in steps),
            "memory": max(step["memory"] for step in steps),
            "wait": sum(step["wait"] for step in steps) / sum(step["seconds"] for step in steps),
            "first_loss": first["loss"],
        }
    except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:  # such as out of memory
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def row(case: Case, ours: dict[str, Any], theirs: dict[str, Any], reached: float) -> dict[str, Any]:
    """What is reported of a case."""
    figures: dict[str, Any] = {"tokens": case.tokens, "checkpointing": case.checkpointing, "ours": ours}
    figures["theirs"] = theirs
    if "seconds" in ours:
        figures["tokens_per_second"] = case.tokens / ours["seconds"]
        figures["mfu"] = measure.share_of_peak(ours["flops_per_second"])
        figures["share_of_measured_peak"] = ours["flops_per_second"] / reached
        figures["memory_per_token"] = ours["memory"] / case.tokens
        figures["loader_wait"] = ours["wait"]
    if "seconds" in ours and "seconds" in theirs:
        figures["times_faster"] = theirs["seconds"] / ours["seconds"]
    return figures


if __name__ == "__main__":
    main()
