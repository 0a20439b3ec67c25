"""Implement `cwm inspect`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data import Shards
from .options import OK, add_json, add_verb, load_tokenizer, not_negative, say, write


def add_inspect(verbs: Any) -> None:
    """Add `cwm inspect`."""
    parser = add_verb(
        verbs,
        _inspect,
        "Show what traces, token shards, a vocabulary, a corpus, a checkpoint, or a model folder hold.",
        "cwm inspect shards/traces --tokenizer vocabulary --samples 3",
        "  traces       number of traces and frames, outcomes, sources\n"
        "  shards       documents, tokens, lengths, sources, the fraction in the loss, decoded samples\n"
        "  vocabulary   number of tokens, special ones included\n"
        "  corpus       traces, tokens, reasons for dropping samples\n"
        "  checkpoints  step, model, files\n"
        "  model        architecture, parameters, data types, files",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="*.cwmtrace and *.cwmtraces files, and folders"
    )
    shards = parser.add_argument_group("shards")
    shards.add_argument("--tokenizer", type=Path, metavar="PATH", help="vocabulary to decode sample documents with")
    shards.add_argument("--samples", type=not_negative, default=3, metavar="N", help="documents to show (default: 3)")
    shards.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of the choice of documents (default: 0)"
    )
    shards.add_argument("--verify", action="store_true", help="first check every byte of the shards")
    add_json(parser)


def _inspect(args: argparse.Namespace) -> int:
    from cwm_core.data.report import describe, inspect

    from .contents import contents

    tokenizer = load_tokenizer(args.tokenizer) if args.tokenizer else None
    found = {}
    for number, path in enumerate(args.paths):
        if len(args.paths) > 1 and not args.json:
            write(f"{'' if number == 0 else chr(10)}{path}\n")
        held = contents(path)
        if held is not None:
            found[str(path)] = asdict(held)
            lines = held.lines()
        else:
            if args.verify:
                Shards(path).verify()
                say(args, f"{path}: every checksum is correct")
            if args.json:
                found[str(path)] = asdict(describe(path))
            lines = inspect(path, tokenizer, args.samples, args.seed)
        if not args.json:
            for line in lines:
                write(line + "\n")
    if args.json:
        write(json.dumps(found, indent=1) + "\n")
    return OK
