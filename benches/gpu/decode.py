"""Generation with the 32 B model (random weights): prompts, single and batched steps, and memory at full length.

    python benches/gpu/decode.py [--tiny] [--json FILE]

Rows "prefill" read a prompt of that many tokens in pieces; floor_s is its FLOPs at the measured speed of a large
product. Rows "decode" take a step of `batch` sequences after prompts of that many tokens; floor_s is the bytes of the
weights and of the cached keys and values within the windows at the measured memory bandwidth. speed is tokens per
second of all sequences, allocated_bytes is PyTorch's peak, weights included, and of_floor is floor_s divided by the
measured time.

"masked" is our engine without the kernel that counts keys in global layers: it uses masks and splits along the keys
everywhere. Without such a kernel, for example on a CPU, both are the same.

The peer is transformers' CwmForCausalLM with the same weights, its forward pass and its cache, decoding greedily.
`agree` is the share of equal tokens after the shortest prompt. In bfloat16 near-ties may differ, and then all later
tokens do.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from cwm_core.inference import Engine, Handle, Request
from cwm_core.inference.quantize import weight_bytes
from cwm_core.model import ModelConfig, Transformer, initialize, preset
from cwm_core.planning.plan import unmasked
from measure import arguments, attempt, peak_flops, report, time_of

TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 64,
    "vocab_size": 512,
}
WARMUP, STEPS = 8, 32

# (batch, prompt): alone at rising lengths up to the model's, and as many as fit beside the weights.
GPU_CASES = ((1, 1024), (1, 16_384), (1, 131_000), (8, 1024), (32, 1024))
TINY_CASES = ((1, 32), (1, 300), (4, 32))


def main() -> None:
    """Measure every case with both engines, print a table and write the figures."""
    args = arguments(__doc__)
    device = torch.device("cpu" if args.tiny else "cuda")
    dtype = torch.float32 if args.tiny else torch.bfloat16
    config = preset("cwm-32b", **(TINY | {"num_hidden_layers": 4} if args.tiny else {}))
    peak, bandwidth = peak_flops(device, dtype), read_bandwidth(device)
    with torch.device("meta"):
        model = Transformer(config).to(dtype)
    initialize(model, 0, device)
    first: dict[str, list[int]] = {}
    rows = []
    for name, implementation in (("ours", Ours), ("masked", Masked), ("transformers", Theirs)):
        # One after the other: two copies of the weights do not fit. The last takes over the first's tensors.
        runner = attempt(lambda: {"run": implementation(model, device)})  # noqa: B023
        for batch, prompt in TINY_CASES if args.tiny else GPU_CASES:
            what = {"model": name, "batch": batch, "prompt": prompt}
            figures = attempt(lambda: runner["run"].measure(batch, prompt)) if "run" in runner else runner  # noqa: B023
            if "skipped" in figures:
                rows.append({"what": "decode"} | what | figures)
                continue
            first.setdefault(name, figures.pop("tokens"))
            figures.pop("tokens", None)
            rows += with_floors(what, figures, model, peak, bandwidth)
        runner.clear()
        gc.collect()
    if {"ours", "transformers"} <= first.keys():
        ours, theirs = first["ours"], first["transformers"]
        rows[0]["agree"] = sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    report("decode", device, peak, rows, args.json)


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second of a sum over a large tensor."""
    numbers = torch.ones((1 << 30) if device.type == "cuda" else (1 << 22), dtype=torch.float32, device=device)
    return numbers.nbytes / time_of(numbers.sum, device, repeats=20)


def with_floors(
    what: dict[str, Any], figures: dict[str, Any], model: Transformer, peak: float, bandwidth: float
) -> list[dict[str, Any]]:
    """Return rows of the prompt and of a step with the lower bounds of their times."""
    config, batch, prompt = model.config, what["batch"], what["prompt"]
    pairs = sum(unmasked(prompt, window) for window in config.layer_windows)
    weights = sum(p.numel() for p in model.layers.parameters())
    flops = batch * (2 * weights * prompt + 4 * config.num_attention_heads * config.head_dim * pairs)
    read = weight_bytes(model) - model.embed_tokens.weight.nbytes + batch * kept_bytes(model, prompt)
    floors = {"prefill": flops / peak, "decode": read / bandwidth}
    counts = {"prefill": batch * prompt, "decode": batch}
    memory = {"allocated_bytes": figures["allocated_bytes"]}
    return [
        {"what": part}
        | what
        | {"time_s": figures[part], "floor_s": floors[part], "of_floor": floors[part] / figures[part]}
        | {"speed": counts[part] / figures[part]}
        | memory
        for part in ("prefill", "decode")
    ]


def kept_bytes(model: Transformer, tokens: int) -> int:
    """Return the bytes of keys and values that a step reads for one sequence."""
    config: ModelConfig = model.config
    positions = sum(tokens if window is None else min(tokens, window) for window in config.layer_windows)
    return 2 * config.num_key_value_heads * config.head_dim * positions * model.embed_tokens.weight.itemsize


def prompts_of(config: ModelConfig, batch: int, prompt: int) -> np.ndarray:
    """Return random tokens, [batch, prompt]."""
    return np.random.default_rng(0).integers(config.vocab_size, size=(batch, prompt))


class Ours:
    """Our engine."""

    def __init__(self, model: Transformer, device: torch.device) -> None:
        """Use this model."""
        self.model, self.device = model, device

    def engine(self, batch: int) -> Engine:
        """Return an engine for `batch` sequences."""
        return Engine(self.model, max_batch=batch)

    def measure(self, batch: int, prompt: int) -> dict[str, Any]:
        """Return seconds of the prompts and of a step, peak bytes, and the tokens of the first sequence."""
        reset_peak()
        engine = self.engine(batch)
        prompts = prompts_of(self.model.config, batch, prompt)

        def read() -> list[Handle]:
            handles = [engine.submit(Request(ids, WARMUP + STEPS, ())) for ids in prompts]
            while not all(handle.ids for handle in handles):
                engine.step()
            return handles

        for handle in read():  # the cache is allocated, and steps are captured, before what is timed
            engine.cancel(handle)
        handles: list[Handle] = []
        prefill = seconds(lambda: handles.extend(read()), self.device)
        for _ in range(WARMUP):
            engine.step()
        count = WARMUP + STEPS - max(len(handle.ids) for handle in handles)
        decode = seconds(lambda: [engine.step() for _ in range(count)], self.device) / count
        tokens = handles[0].ids[:STEPS]
        return {"prefill": prefill, "decode": decode, "tokens": tokens, "allocated_bytes": peak_bytes()}


class Masked(Ours):
    """Our engine without the kernel that counts keys."""

    def engine(self, batch: int) -> Engine:
        """Override `Ours.engine`."""
        engine = super().engine(batch)
        engine._runner.kernel = None
        return engine


class Theirs:
    """transformers with the tensors of our model as its weights."""

    def __init__(self, model: Transformer, device: torch.device) -> None:
        """Use this model."""
        from transformers import CwmConfig, CwmForCausalLM

        shape = {k: v for k, v in model.config.to_hf().items() if k not in ("architectures", "eos_token_id")}
        dtype = model.lm_head.weight.dtype
        with torch.device("meta"):
            theirs = CwmForCausalLM._from_config(
                CwmConfig(**shape, bos_token_id=0), attn_implementation="sdpa", dtype=dtype
            )
        renamed = {f"model.{name}".replace("model.lm_head", "lm_head"): p for name, p in model.named_parameters()}
        theirs.load_state_dict(renamed, assign=True)
        rotary = theirs.model.rotary_emb  # its frequencies are not weights, so create them on the device of the model
        theirs.model.rotary_emb = type(rotary)(theirs.config).to(device)
        self.model, self.config, self.device = theirs.eval(), model.config, device

    @torch.inference_mode()
    def measure(self, batch: int, prompt: int) -> dict[str, Any]:
        """Measure as `Ours.measure` does."""
        reset_peak()
        prompts = torch.from_numpy(prompts_of(self.config, batch, prompt)).to(self.device)
        self.model(prompts, logits_to_keep=1)
        out = None

        def step(tokens: torch.Tensor) -> torch.Tensor:
            nonlocal out
            cache = None if out is None else out.past_key_values
            out = self.model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1:].argmax(-1)

        chosen = []
        prefill = seconds(lambda: chosen.append(step(prompts)), self.device)
        for _ in range(WARMUP):
            chosen.append(step(chosen[-1]))
        count = STEPS - len(chosen)
        decode = seconds(lambda: [chosen.append(step(chosen[-1])) for _ in range(count)], self.device) / count
        tokens = torch.cat(chosen, 1)[0].tolist()
        return {"prefill": prefill, "decode": decode, "tokens": tokens, "allocated_bytes": peak_bytes()}


def seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of one call, including the work that it starts on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def reset_peak() -> None:
    """Free the memory of earlier cases and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """Return the peak of allocated bytes; None on a CPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


if __name__ == "__main__":
    main()
