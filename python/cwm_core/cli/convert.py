"""Implement `cwm import` and `cwm export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data import Shards
from ..formats.traces import STORE, TRACE, export_traces, import_traces
from .options import OK, add_verb, counter, load_tokenizer, say


def add_import(verbs: Any) -> None:
    """Add `cwm import`."""
    parser = add_verb(
        verbs,
        _import,
        "Import traces into a new store, or token ids into shards, from Parquet, JSONL, and other files.",
        "cwm import traces/ more.parquet -o all.cwmtraces\n  cwm import ids.parquet -o shards --tokenizer vocabulary",
        "If OUT ends in .cwmtraces, the inputs are Parquet and JSONL files that `cwm export` wrote, other stores,\n"
        "single traces, and folders. The key of a single trace in a folder is its path.\n"
        "Any other OUT is a folder of shards, and the inputs are Parquet files with a column of token ids. Run the\n"
        "same command again to resume an interrupted import.\n"
        "Parquet files require pyarrow: run pip install '.[parquet]' in a checkout of cwm-core.",
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="IN", help="*.parquet, *.jsonl, *.cwmtraces, *.cwmtrace, or a folder"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="OUT",
        help="store to write (*.cwmtraces), or folder of shards",
    )
    parser.add_argument("--tokenizer", type=Path, metavar="PATH", help="vocabulary of the token ids")
    parser.add_argument("--ids", metavar="COLUMN", default="input_ids", help="column of token ids (default: input_ids)")
    parser.add_argument("--source", metavar="COLUMN", help="column with the sources of the documents (token ids only)")


def _import(args: argparse.Namespace) -> int:
    are_token_ids = args.output.suffix.lower() != STORE and all(
        source.suffix.lower() == ".parquet" for source in args.sources
    )
    if not are_token_ids:
        with counter(args) as progress:
            count = import_traces(args.sources, args.output, progress)
        say(args, f"{args.output}: {count:,} traces")
        return OK
    from cwm_core.formats.parquet import import_parquet

    if args.tokenizer is None:
        args.error(f"--tokenizer is required: OUT is a folder of shards because it does not end in {STORE}")
    tokenizer = load_tokenizer(args.tokenizer)
    with counter(args, "rows") as show:
        progress_of_rows = (lambda done, _: show(done)) if show else None
        done = import_parquet(
            args.sources, args.output, tokenizer, ids=args.ids, source=args.source, progress=progress_of_rows
        )
    say(args, f"{args.output}: {done.tokens:,} tokens of {done.documents:,} documents, {done.new_documents:,} new")
    return OK


def add_export(verbs: Any) -> None:
    """Add `cwm export`."""
    parser = add_verb(
        verbs,
        _export,
        "Export a trace store or token shards to a format that other tools read.",
        "cwm export all.cwmtraces -o all.parquet\n  cwm export shards/traces -o traces_document.idx --drop-masks",
        "A trace store is exported to Parquet or JSONL, which `cwm import` reads back without loss. The columns are\n"
        "key, source, license, outcome, frames, context, text, metadata, and trace (the lossless form).\n"
        "Token shards are exported to a Megatron indexed dataset, OUT.idx and OUT.bin. That format has no sources,\n"
        "spans, and loss masks.\n"
        "Parquet files require pyarrow: run pip install '.[parquet]' in a checkout of cwm-core.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="trace store (*.cwmtraces), or folder of shards")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        metavar="OUT",
        help="file to write: *.parquet, *.jsonl, or *.idx; never overwritten",
    )
    parser.add_argument(
        "--drop-masks",
        action="store_true",
        help="for *.idx: export documents with masked tokens and put all tokens in the loss",
    )


def _export(args: argparse.Namespace) -> int:
    if args.output.suffix.lower() == ".idx":
        from cwm_core.formats import megatron

        count = megatron.write_megatron(args.output.with_suffix(""), Shards(args.input), drop_masks=args.drop_masks)
        say(args, f"{args.output}: {count:,} documents")
        return OK
    if args.input.suffix.lower() == TRACE:
        raise ValueError(
            f"{args.input}: expected a trace store (*{STORE}), got a single trace; make a store of it with "
            f"`cwm import {args.input} -o {args.input.with_suffix(STORE)}`"
        )
    with counter(args) as progress:
        count = export_traces(args.input, args.output, progress)
    say(args, f"{args.output}: {count:,} traces")
    return OK
