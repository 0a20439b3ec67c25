"""Implement `cwm tokenize` and `cwm pack`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import Packing, Shards, ShardWriter
from ..support.jsonl import STDIN
from ..tokenizer import PATTERNS, Tokenizer, resolve_pattern
from .options import OK, add_json, add_verb, counter, load_tokenizer, not_negative, positive, say, share, warn, write

if TYPE_CHECKING:
    from cwm_core.data.documents import DocumentKind, Item


def add_tokenize(verbs: Any) -> None:
    """Add `cwm tokenize`."""
    parser = add_verb(
        verbs,
        _tokenize,
        "Tokenize traces, texts, chats, and trajectories into a folder of token shards for training.",
        "cwm tokenize traces/ --tokenizer vocabulary --train-vocab 4096 -o shards",
        "A row of a JSONL or Parquet file has the column `messages` (a chat), `trace` (from `cwm export`), or `text`.\n"
        "The loss covers all tokens of a text, the assistant's messages of a chat, the tokens of a trace after its\n"
        "first frame, and the actions and a random half of the observations of a trajectory (from `cwm agent`).\n"
        "The source of a document is the `source` of its metadata or row, else the name of the folder of its file.\n"
        "A folder with traces or stores is read for these only, another folder for its JSONL and Parquet files.",
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IN",
        help="*.cwmtrace, *.cwmtraces, *.jsonl or *.ndjson (also .gz or .zst), *.parquet, a folder, or - for JSONL on "
        "stdin",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=Path,
        metavar="PATH",
        help="vocabulary: a folder with tokenizer.json, or a tiktoken rank file",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="SHARDS", help="folder to write shards to")
    parser.add_argument(
        "--train-vocab",
        type=positive,
        metavar="N",
        help="first train a vocabulary of N ordinary tokens, add 256 special tokens, and save it to FOLDER",
    )
    parser.add_argument(
        "--pattern",
        metavar="PATTERN",
        help=f"split pattern for --train-vocab: {', '.join(PATTERNS)}, or a regular expression (default: llama3)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume an interrupted run over the same files: append to its shards",
    )
    parser.add_argument(
        "--kind",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="also read documents of this cwm_core.data.DocumentKind (may be repeated)",
    )

    rollouts = parser.add_argument_group("trajectories")
    rollouts.add_argument(
        "--observations",
        type=share,
        default=0.5,
        metavar="P",
        help="share of the observations in the loss (default: 0.5)",
    )
    rollouts.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of the choice of observations (default: 0)"
    )
    rollouts.add_argument(
        "--max-jaccard",
        type=share,
        metavar="J",
        help="drop a trajectory whose Jaccard similarity to an earlier one is at least J, such as 0.5; needs the extra "
        "corpus",
    )


def _tokenize(args: argparse.Namespace) -> int:
    from cwm_core.data.documents import document_files, document_kinds
    from cwm_core.environments.documents import TrajectoryKind

    if args.pattern is not None and not args.train_vocab:
        args.error("--pattern requires --train-vocab; an existing vocabulary has its own pattern")
    pattern = resolve_pattern("llama3" if args.pattern is None else args.pattern)
    kinds = document_kinds([*args.kind, TrajectoryKind(seed=args.seed, observations=args.observations)])
    files = list(document_files(args.inputs, kinds))
    if args.train_vocab and Path(STDIN) in files:
        args.error(
            "--train-vocab reads its input twice, so it cannot read standard input; write the input to a file first"
        )
    if args.train_vocab and (args.tokenizer.is_file() or (args.tokenizer / "tokenizer.json").exists()):
        raise ValueError(f"{args.tokenizer} already contains a vocabulary; remove --train-vocab to use it")
    if not args.resume and any(args.output.glob("*.cwmtok")):
        raise FileExistsError(
            17,
            "the folder already holds token shards; choose another --output, or append with --resume",
            str(args.output),
        )
    if args.train_vocab:
        texts = (text for item in _items(files, kinds) for text in item.texts())
        tokenizer = Tokenizer.train(texts, args.train_vocab, pattern=pattern)
        tokenizer.save(args.tokenizer)
        say(args, f"{args.tokenizer}: {tokenizer.vocab_size:,} tokens, including special ones")
    else:
        tokenizer = load_tokenizer(args.tokenizer)
    items = _items(files, kinds, lambda file: warn(args, f"warning: {file}: no documents"))
    if args.max_jaccard is not None:
        items = _distinct(items, args.max_jaccard)
    with ShardWriter(args.output, tokenizer, append=args.resume) as writer, counter(args) as progress:
        for item in islice(items, writer.documents, None):
            ids, loss_mask, spans = item.encode(tokenizer)
            try:
                writer.add(ids, loss_mask, item.source, spans)
            except ValueError as error:  # such as an empty text without special tokens around it
                raise ValueError(f"{item.where}: {error}") from None
            if progress:
                progress(writer.documents)
    shards = Shards(args.output)
    say(args, f"{args.output}: {shards.tokens:,} tokens of {len(shards):,} documents")
    return OK


def _items(
    files: Sequence[Path], kinds: Sequence[DocumentKind[Any]], on_empty: Callable[[Path], None] = lambda _: None
) -> Iterator[Item]:
    """Yield the documents of all files. Call `on_empty` for files without documents; raise ValueError if all are."""
    from cwm_core.data.documents import read_items

    empty = []
    for file in files:
        item = None
        for item in read_items(file, kinds):
            yield item
        if item is None:
            empty.append(file)
    if len(empty) == len(files):
        raise ValueError(f"{', '.join(map(str, empty[:10]))}: no documents to tokenize")
    for file in empty:
        on_empty(file)


def _distinct(items: Iterator[Item], threshold: float) -> Iterator[Item]:
    """Drop trajectories that nearly equal an earlier one."""
    from cwm_core.environments import NearDuplicates, Trajectory

    seen = NearDuplicates(threshold)
    return (item for item in items if not isinstance(item.content, Trajectory) or seen.check(item.content) is None)


def add_pack(verbs: Any) -> None:
    """Add `cwm pack`."""
    parser = add_verb(
        verbs,
        _pack,
        "Report how shards pack into rows: lengths, sources, and the fraction of each row that is filled.",
        "cwm pack shards/traces shards/code --seq-len 8192 --batch-size 16",
        "Plans one epoch from the lengths of the documents. Reads no tokens and writes nothing.",
    )
    parser.add_argument("shards", nargs="+", metavar="SHARDS", help="folders of shards")
    parser.add_argument("--seq-len", required=True, type=positive, metavar="N", help="tokens per row")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="rows in a step (default: 1)")
    parser.add_argument(
        "--packing",
        choices=[packing.value for packing in Packing],
        default=Packing.BEST_FIT.value,
        help="best_fit: cut only documents longer than a row; stream: lay documents end to end (default: best_fit)",
    )
    parser.add_argument(
        "--lookahead",
        type=positive,
        default=65_536,
        metavar="N",
        help="documents packed together (default: 65536)",
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="seed of the order of documents (default: 0)"
    )
    add_json(parser)


def _pack(args: argparse.Namespace) -> int:
    from cwm_core.data.report import packing, summarize_packing

    options = {name: getattr(args, name) for name in ("batch_size", "packing", "lookahead", "seed")}
    if args.json:
        write(json.dumps(asdict(summarize_packing(args.shards, args.seq_len, **options)), indent=1) + "\n")
        return OK
    with counter(args, "steps") as progress:
        for line in packing(args.shards, args.seq_len, progress=progress, **options):
            write(line + "\n")
    return OK
