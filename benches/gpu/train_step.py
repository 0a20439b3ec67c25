"""Training steps of full-width layers on packed documents, compared to transformers on the same batches.

    python benches/gpu/train_step.py [--tiny] [--json FILE]

Ours is `Trainer` on a `PackedLoader`, as in `cwm train`: forward, chunked loss, backward, clipping, AdamW. The peer is
a plain loop with the same parts, run with each attention that can pack documents; the fastest counts. Both keep
weights, gradients and optimizer states in bfloat16, so that four layers of the 32 B model, one global and three local,
fit one GPU with the whole vocabulary, and both recompute layers in the backward pass if requested. They start from the
same weights: the losses of the first step, which are reported, must agree.

Columns:

- step_s: median of the steps after the warm-up
- peak_bytes, token_bytes: peak memory, in total and per token
- loader_wait: share of the time spent waiting for batches
- of_peak: FLOPs of the model (`training_flops`: unmasked pairs only, nothing recomputed) as a share of the measured
  speed of a large product
- mfu: the same as a share of the published peak
- times_faster: time of the fastest peer divided by ours
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cwm_core.data import PackedLoader, ShardWriter
from cwm_core.model import ModelConfig, Transformer, initialize, preset
from cwm_core.model.flops import training_flops
from cwm_core.training import Progress, TrainConfig, Trainer, World, parallelize
from cwm_core.training.gpus import peak_flops as published_peak
from cwm_core.training.metrics import peak_memory
from measure import arguments, attempt, documents, peak_flops, report

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
    "vocab_size": 512,
}

WARMUP, STEPS = 3, 8

# Attentions of transformers that keep packed documents apart.
THEIR_ATTENTIONS = ("flash_attention_3", "flash_attention_2", "flex_attention", "sdpa")


@dataclass(frozen=True)
class Case:
    """One length of rows and its activation checkpointing."""

    tokens: int
    activation_checkpointing: str


GPU_CASES = (Case(8192, "none"), Case(32_768, "full"), Case(131_072, "full"))
TINY_CASES = (Case(256, "none"), Case(512, "full"))


def main() -> None:
    """Measure every case, print a table and write the figures."""
    args = arguments(__doc__)
    device = torch.device("cpu" if args.tiny else "cuda")
    config = preset("cwm-32b", num_hidden_layers=4, **(TINY if args.tiny else {}))
    peak = peak_flops(device, torch.float32 if args.tiny else torch.bfloat16)
    rows = []
    for case in TINY_CASES if args.tiny else GPU_CASES:
        with tempfile.TemporaryDirectory() as folder:
            write_documents(Path(folder), case.tokens, config.vocab_size)
            runs = {"ours": partial(our_steps, config, case, folder, device)}
            for attention in THEIR_ATTENTIONS:
                runs[attention] = partial(their_steps, config, case, folder, device, attention)
            what = {"tokens": case.tokens, "checkpointing": case.activation_checkpointing}
            of_case = [what | {"model": name} | measured(run) for name, run in runs.items()]
        compare(of_case, case, peak, device)
        rows += of_case
    report("train_step", device, peak, rows, args.json)


def compare(rows: list[dict[str, Any]], case: Case, peak: float, device: torch.device) -> None:
    """Add to our row how many times longer the fastest peer takes, and the shares of the peaks."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    published = published_peak(name, "bfloat16")
    for row in rows:
        if "step_s" in row:
            speed = row.pop("flops") / row["step_s"]
            row |= {"of_peak": speed / peak, "mfu": speed / published if published else None}
            row["token_bytes"] = row["peak_bytes"] / case.tokens
    ours, *theirs = rows
    times = [row["step_s"] for row in theirs if "step_s" in row]
    if "step_s" in ours and times:
        ours["times_faster"] = min(times) / ours["step_s"]


def write_documents(folder: Path, tokens: int, vocab_size: int) -> None:
    """Write shards of random tokens in documents of realistic lengths, enough for all steps."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, vocab_size) as writer:
        for row in range(WARMUP + STEPS + 1):
            for length in documents(tokens, seed=row):
                writer.add(rng.integers(vocab_size, size=length))


def loader(folder: str, case: Case) -> PackedLoader:
    """Return batches of one row each: a stream of documents, cut where a row is full, so that rows have no padding."""
    return PackedLoader(folder, case.tokens, packing="stream")


def our_steps(config: ModelConfig, case: Case, folder: str, device: torch.device) -> list[dict[str, float]]:
    """Return seconds, peak bytes, FLOPs and seconds waited for the loader of each step."""
    on_gpu = device.type == "cuda"
    training = TrainConfig(
        max_steps=WARMUP + STEPS,
        learning_rate=1e-5,
        warmup_steps=0,
        dtype="bfloat16" if on_gpu else "float32",
        device=device.type,
        activation_checkpointing=case.activation_checkpointing,
        compile=on_gpu,
    )
    world = World.create(training)
    with torch.device("meta"):
        model = Transformer(config)
    if on_gpu:
        model = model.bfloat16()
    parallelize(model, training, world)
    initialize(model, 0, world.device)
    flops = [batch_flops(config, batch) for batch, _ in zip(loader(folder, case), range(WARMUP + STEPS), strict=False)]
    steps: list[dict[str, float]] = []

    def note(progress: Progress) -> None:
        figures = {"seconds": progress.step_seconds, "memory": progress.memory, "wait": progress.data_wait}
        steps.append(figures | {"flops": flops[progress.step - 1], "loss": progress.loss})

    Trainer(model, loader(folder, case), training, note, world).run()
    return steps


def batch_flops(config: ModelConfig, batch: Any) -> float:
    """Return the training FLOPs of the documents of a batch."""
    return training_flops(config, np.diff(batch.cu_seqlens).tolist(), int(batch.loss_mask.sum()), None)


def their_steps(
    config: ModelConfig, case: Case, folder: str, device: torch.device, attention: str
) -> list[dict[str, float]]:
    """Return the same figures for `CwmForCausalLM` with the same weights."""
    from transformers import CwmConfig, CwmForCausalLM

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
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
    if case.activation_checkpointing != "none":
        model.activation_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    steps = []
    for _, batch in zip(range(WARMUP + STEPS), loader(folder, case), strict=False):
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
        loss = loss.item()  # waits for the GPU
        figures = {"seconds": time.perf_counter() - began, "memory": peak_memory(device), "wait": 0.0}
        steps.append(figures | {"flops": batch_flops(config, batch), "loss": loss})
    return steps


def measured(run: Callable[[], list[dict[str, float]]]) -> dict[str, Any]:
    """Return the figures of a run's steps after the warm-up, or the reason in `skipped`; memory is freed afterwards."""

    def figures() -> dict[str, Any]:
        first, *steps = run()
        steps = steps[WARMUP - 1 :]
        seconds = [step["seconds"] for step in steps]
        return {
            "step_s": statistics.median(seconds),
            "peak_bytes": max(step["memory"] for step in steps),
            "loader_wait": sum(step["wait"] for step in steps) / sum(seconds),
            "first_loss": first["loss"],
            "flops": sum(step["flops"] for step in steps) / len(steps),
        }

    try:
        return attempt(figures)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
