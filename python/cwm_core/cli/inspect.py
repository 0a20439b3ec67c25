"""`cwm inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data import Shards
from .options import OK, add_verb, load_tokenizer, not_negative, say, write


def add_inspect(verbs: Any) -> None:
    """Add `cwm inspect`."""
    parser = add_verb(
        verbs,
        _inspect,
        "Show what shards hold: lengths, sources, what is in the loss, and some documents.",
        "cwm inspect shards/traces --tokenizer vocabulary --samples 3",
    )
    parser.add_argument("shards", nargs="+", type=Path, metavar="SHARDS", help="folders of shards")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="vocabulary to decode documents with")
    parser.add_argument("--samples", type=not_negative, default=3, metavar="N", help="documents to show (default: 3)")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="N", help="seed of their choice (default: 0)")
    parser.add_argument("--verify", action="store_true", help="first check every byte of the shards")


def _inspect(args: argparse.Namespace) -> int:
    from cwm_core.data.report import inspect

    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    for folder in args.shards:
        if args.verify:
            Shards(folder).verify()
            say(args, f"{folder}: every byte is as it was written")
        for line in inspect(folder, tokenizer, args.samples, args.seed):
            write(line + "\n")
    return OK
