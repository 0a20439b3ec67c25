"""Implement `cwm rl`."""

from __future__ import annotations

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .options import INTERRUPTED, OK, add_verb, say, warn


def add_rl(verbs: Any) -> None:
    """Add `cwm rl`."""
    parser = add_verb(
        verbs,
        _rl,
        "Train a model by reinforcement learning on tasks whose rewards execution verifies.",
        "cwm rl configs/tiny/rl.toml\n  cwm rl rl.toml --set training.max_steps=200 --set output=runs/short",
        "docs/guides/reinforcement-learning.md describes CONFIG. Ctrl-C ends the run after the current step, with a\n"
        "checkpoint. The same command resumes it.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file that describes the run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the file; repeatable"
    )


def _rl(args: argparse.Namespace) -> int:
    from cwm_core.rl.run import RLConfig, run
    from cwm_core.training import TrainingEnd
    from cwm_core.training.report import show_progress

    config = RLConfig.from_toml(args.config, args.set)
    is_main = os.environ.get("RANK", "0") == "0"  # only one of the processes of torchrun prints
    with show_progress() if is_main and not args.quiet else nullcontext() as on_step:
        reason = run(config, on_step)
    if reason is TrainingEnd.SIGNAL:
        if is_main:
            warn(args, f"interrupted; the same command resumes from the checkpoint in {config.output}")
        return INTERRUPTED
    if is_main:
        say(args, f"wrote the model and its vocabulary to {config.output}")
    return OK
