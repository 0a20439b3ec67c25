"""What the GPU benchmarks share: devices, times, the peak that a product reaches, lengths of documents, the report."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cwm_core.training.gpus import peak_flops as published_peak


def arguments(purpose: str) -> argparse.ArgumentParser:
    """The options that every script has."""
    parser = argparse.ArgumentParser(description=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU, to see that the script works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser


def device(args: argparse.Namespace) -> torch.device:
    """The GPU, or the CPU with `--tiny`; ends the script where there is no GPU."""
    if args.tiny:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SystemExit("there is no GPU here; --tiny runs small sizes on the CPU")
    return torch.device("cuda")


def synchronize(device: torch.device) -> None:
    """Wait for all that was started on `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Median time of a call, by the GPU's own clock."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def extra_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that a call has allocated at its peak beyond what was there before; None on a CPU, which does not say."""
    if device.type != "cuda":
        return None
    synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_flops(device: torch.device) -> float:
    """FLOP/s that the product of two square matrices of random bfloat16 (on a CPU float32) reaches here."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def share_of_peak(flops_per_second: float) -> float | None:
    """Of what the GPU's maker publishes for dense bfloat16; None for a device that `GPUS` does not know."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = published_peak(name, "bfloat16")
    return flops_per_second / peak if peak else None


def documents(tokens: int, seed: int) -> list[int]:
    """Lengths of documents that fill `tokens` exactly, the last one cut.

    Drawn log-uniformly from a tenth of the row to all of it: of rows of 131,072 tokens 30 % of the draws are then over
    65,536, as in the mid-training of the Code World Model (arXiv 2510.02387).
    """
    rng = np.random.default_rng(seed)
    lengths: list[int] = []
    left = tokens
    while left:
        length = min(left, int(tokens * 10 ** -rng.random()))
        lengths.append(length)
        left -= length
    return lengths


def line(figures: dict[str, Any]) -> str:
    """Nested figures as one line for people."""
    return "  ".join(f"{name} {value}" for name, value in _flat(figures))


def _flat(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in figures.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found.append((prefix + name, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return found


def report(args: argparse.Namespace, device: torch.device, figures: dict[str, Any]) -> None:
    """Write the figures, with the device and versions that they are of, where `--json` says."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    whole = {"device": name, "torch": torch.__version__, **figures}
    if args.json:
        args.json.write_text(json.dumps(whole, indent=2) + "\n")
