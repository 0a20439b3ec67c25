"""Shared code of the GPU benchmarks: time, memory, speed of the device, and documents like those of training."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch


def arguments(description: str | None) -> argparse.Namespace:
    """Parse the command line that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="small sizes in float32 on the CPU: to see that it works")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --tiny runs on a CPU")
    return args


def time_of(function: Callable[[], Any], device: torch.device, repeats: int = 10, warmup: int = 3) -> float:
    """Return the median seconds of a call, measured by CUDA events on a GPU; the warm-up includes compilation."""
    for _ in range(warmup):
        function()
    times = []
    for _ in range(repeats):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
    return median(times)


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes that a call allocates at its peak beyond those allocated before; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def distance(results: tuple[torch.Tensor, ...], first: list[torch.Tensor]) -> float:
    """Return the largest relative distance of results from the first results, which `first` stores."""
    first.extend(results if not first else ())
    distances = ((a - b).float().norm() / b.float().norm() for a, b in zip(results, first, strict=True))
    return max(one.item() for one in distances)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of one large product of square matrices on this device at its current clock and temperature."""
    size = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / time_of(lambda: a @ b, device, repeats=20)


def documents(tokens: int, seed: int = 0) -> list[int]:
    """Return lengths of documents that fill a row of `tokens` tokens; the last document is cut.

    Lengths are log-normal with sigma 1.6, the spread of source files. The median is chosen so that 30 % are longer than
    half the row, as in mid-training of the Code World Model (arXiv 2510.02387): over 65,536 in rows of 131,072.
    """
    rng = np.random.default_rng(seed)
    above_half = 0.5244  # the standard normal exceeds it 30 % of the time
    mean = np.log(tokens / 2) - above_half * 1.6
    lengths: list[int] = []
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, 1 + int(rng.lognormal(mean, 1.6))))
    return lengths


def attempt(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the measurement of the function, or the reason in `skipped` if the device or PyTorch cannot run it."""
    try:
        return function()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"skipped": "out of memory"}
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return {"skipped": str(error).splitlines()[0]}


def report(name: str, device: torch.device, peak: float, rows: list[dict[str, Any]], file: Path | None) -> None:
    """Print the rows as a table, in ms and MB, and write them as JSON, in seconds and bytes."""
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name} on {device_name}, torch {torch.__version__}, {peak / 1e12:.3g} TFLOP/s in a large product")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "skipped"))
    table = [columns, *([cell(column, row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line, row in zip(table, [{}, *rows], strict=True):
        text = "  ".join(value.rjust(width) for value, width in zip(line, widths, strict=True))
        print(text + (f"  skipped: {row['skipped']}" if "skipped" in row else ""))
    if file:
        versions = {"device": device_name, "torch": torch.__version__}
        file.write_text(json.dumps({"benchmark": name, **versions, "peak_flops": peak, "rows": rows}, indent=1))


def cell(column: str, value: Any) -> str:
    """Format a value by the unit of its column."""
    if value is None:
        return "-"
    if column.endswith("_s"):
        return f"{value * 1e3:,.3f}"
    if column.endswith("_bytes"):
        return f"{value / 1e6:,.0f}"
    return f"{value:.2g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
