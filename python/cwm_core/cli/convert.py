"""`cwm import` and `cwm export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..data import Shards
from ..formats.traces import STORE, export_traces, import_traces
from .options import OK, add_verb, counter, load_tokenizer, say


def add_import(verbs: Any) -> None:
    """Add `cwm import`."""
    parser = add_verb(
        verbs,
        _import,
        "Put traces into a new store, or token ids into shards: from Parquet, JSONL and other files.",
        "cwm import traces/ more.parquet all.cwmtraces\n  cwm import ids.parquet shards --tokenizer vocabulary",
        "Into a store go Parquet and JSONL files that `cwm export` wrote, other stores, single traces and folders; a\n"
        "single trace in a folder gets its path for a key. Any other OUT is a folder of shards, into it go Parquet\n"
        "files with a column of token ids, or what is missing of them after an interruption.\n"
        "Parquet needs pyarrow: run pip install '.[parquet]' in a checkout of cwm-core.",
    )
    parser.add_argument(
        "sources", nargs="+", type=Path, metavar="IN", help="*.parquet, *.jsonl, *.cwmtraces, *.cwmtrace, or a folder"
    )
    parser.add_argument("output", type=Path, metavar="OUT", help="*.cwmtraces to write, or a folder of shards")
    parser.add_argument("--tokenizer", type=Path, metavar="FOLDER", help="of token ids: the vocabulary they are of")
    parser.add_argument("--ids", metavar="COLUMN", default="input_ids", help="of token ids (default: input_ids)")
    parser.add_argument("--source", metavar="COLUMN", help="of token ids: the documents' source tags")


def _import(args: argparse.Namespace) -> int:
    are_token_ids = args.output.suffix != STORE and all(source.suffix == ".parquet" for source in args.sources)
    if not are_token_ids:
        with counter(args) as progress:
            count = import_traces(args.sources, args.output, progress)
        say(args, f"{args.output}: {count:,} traces")
        return OK
    from cwm_core.formats.parquet import import_parquet

    if args.tokenizer is None:
        args.error(f"--tokenizer is missing: OUT is a folder of shards unless it ends in {STORE}")
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
        "Write the traces of a store, or shards, to a file that other tools read.",
        "cwm export all.cwmtraces all.parquet\n  cwm export shards/traces traces_document.idx --drop-masks",
        "Traces go to Parquet or JSONL, and come back by `cwm import`: a row holds key, source, licence, outcome,\n"
        "frames, context, text, metadata, and the trace itself, lossless. Shards go to Megatron's indexed dataset,\n"
        "OUT.idx and OUT.bin, which has no place for sources, spans and masks.\n"
        "Parquet needs pyarrow: run pip install '.[parquet]' in a checkout of cwm-core.",
    )
    parser.add_argument("input", type=Path, metavar="IN", help="*.cwmtraces, or a folder of shards")
    parser.add_argument("output", type=Path, metavar="OUT", help="*.parquet, *.jsonl or *.idx; never overwritten")
    parser.add_argument("--drop-masks", action="store_true", help="to *.idx: let all tokens be learned")


def _export(args: argparse.Namespace) -> int:
    if args.output.suffix == ".idx":
        from cwm_core.formats import megatron

        count = megatron.write(args.output.with_suffix(""), Shards(args.input), drop_masks=args.drop_masks)
        say(args, f"{args.output}: {count:,} documents")
        return OK
    with counter(args) as progress:
        count = export_traces(args.input, args.output, progress)
    say(args, f"{args.output}: {count:,} traces")
    return OK
