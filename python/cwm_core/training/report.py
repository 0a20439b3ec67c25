"""Outputs for the metrics of a run: console, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta

from ..support.files import StrPath
from .metrics import Progress

OnStep = Callable[[Progress], None]
"""Function that is called with the metrics of each step."""

_LOG_SECONDS = 10.0  # between lines where there is no terminal to draw on


@contextmanager
def show_progress() -> Iterator[OnStep]:
    """Show a progress bar on standard error, or a line every 10 seconds if that is not a terminal.

    Yields:
        A function that shows a step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    bar = Bar(BarColumn(), TextColumn("{task.description}"), console=console, refresh_per_second=2)
    task = bar.add_task("", total=1.0)
    last_line = -_LOG_SECONDS

    def show(progress: Progress) -> None:
        nonlocal last_line
        text = _line(progress)
        now = time.monotonic()
        if console.is_terminal:
            bar.update(task, completed=progress.fraction, description=text)
        elif now - last_line >= _LOG_SECONDS or progress.fraction >= 1:
            last_line = now
            print(text, file=console.file, flush=True)

    if not console.is_terminal:
        yield show
        return
    with bar:
        yield show


def _line(progress: Progress) -> str:
    left = timedelta(seconds=round(progress.seconds * (1 / progress.fraction - 1)))
    waiting = progress.data_wait / progress.step_seconds
    parts = [
        f"step {progress.step:,}",
        f"loss {progress.loss:.4f}",
        *(f"{name} {value:.3g}" for name, value in progress.metrics.items() if "/" not in name),
        f"{progress.tokens_per_second:,.0f} tokens/s",
        *([] if progress.mfu is None else [f"MFU {progress.mfu:.1%}"]),
        f"gradient norm {progress.grad_norm:.3f}",
        f"{progress.memory / 1e9:.1f} GB",
        *([f"waiting for data {waiting:.0%}"] if waiting >= 0.01 else []),
        f"{left} left",
    ]
    return "  ".join(parts)


@contextmanager
def write_jsonl(path: StrPath) -> Iterator[OnStep]:
    """Append the metrics of each step to a file as one line of JSON.

    Yields:
        A function that writes a step.
    """
    with open(path, "a", buffering=1, encoding="utf-8") as file:
        yield lambda progress: print(json.dumps(asdict(progress)), file=file)


@contextmanager
def write_tensorboard(folder: StrPath) -> Iterator[OnStep]:
    """Write the metrics of each step as TensorBoard scalars.

    Yields:
        A function that writes a step.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(progress: Progress) -> None:
            values = asdict(progress)
            losses, metrics, step = values.pop("losses"), values.pop("metrics"), values.pop("step")
            for name, value in (values | metrics).items():
                if value is not None:
                    writer.add_scalar(name, value, step)
            for source, loss in losses.items():
                writer.add_scalar(f"losses/{source}", loss, step)

        yield write
