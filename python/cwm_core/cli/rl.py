"""Implement `cwm rl`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .models import train
from .options import add_verb


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

    config = RLConfig.from_toml(args.config, args.set)
    return train(args, config.output, lambda on_step: run(config, on_step))
