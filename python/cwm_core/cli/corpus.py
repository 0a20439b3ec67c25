"""`cwm corpus`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats.traces import STORE, trace_files
from ..support import secrets
from .options import (
    FAILED,
    OK,
    add_json,
    add_verb,
    counter,
    machines,
    not_negative,
    positive,
    say,
    seconds,
    warn,
    write,
)

if TYPE_CHECKING:
    from cwm_core.corpus.pipeline import Summary, Work
    from cwm_core.corpus.recording import CorpusSettings
    from cwm_core.support.pool import Pool


def add_corpus(verbs: Any) -> None:
    """Add `cwm corpus`."""
    parser = add_verb(
        verbs,
        _corpus,
        "Make a corpus: run code that nobody vouches for, keep the traces that teach.",
        "cwm corpus contests problems.jsonl --licence CC-BY-4.0 --tokenizer vocabulary -o corpus",
        "Every program runs in a process of its own in a sandbox, twice, under two hash seeds. DIR holds traces and\n"
        "token shards, ready for training. Ctrl-C, or any other end, keeps what is done; the same command goes on.\n"
        "docs/guides/corpus.md says what is kept and why.",
    )
    kinds = parser.add_subparsers(title="what to record", dest="kind", metavar="KIND", required=True)
    _add_functions(kinds)
    _add_contests(kinds)
    _add_repository(kinds)
    _add_describe(kinds)


def _add_functions(kinds: Any) -> None:
    purpose = "Functions of files, packages and snippets, called with inputs that reach what there is to reach."
    parser = kinds.add_parser("functions", help=purpose, description=purpose)
    parser.set_defaults(make=_functions)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a *.py, a package's name or folder, a *.jsonl of snippets")
    add("--tests", type=Path, action="append", default=[], metavar="PATH", help="whose calls are looked at, too")
    add("--licence", metavar="SPDX", help="of sources that do not state theirs")
    add("--budget", type=positive, default=100, metavar="N", help="calls tried of a function (default: 100)")
    add("--calls", type=positive, default=5, metavar="N", help="calls recorded of a function (default: 5)")
    add("--endpoint", metavar="URL", help="of an OpenAI-compatible server that is asked for calls, too")
    add("--model", metavar="NAME", help="its name there")
    _add_common(parser)
    parser.set_defaults(max_seconds=1.0)


def _functions(args: argparse.Namespace) -> Summary:
    from dataclasses import replace

    from cwm_core.corpus.functions.discovery import find_functions
    from cwm_core.corpus.functions.record import ExploreAndRecord
    from cwm_core.support.endpoint import EndpointError

    found = [find_functions(source, tests=args.tests) for source in args.sources]
    skipped = sum((one.skipped for one in found), Counter())
    functions = [function for one in found for function in one.functions]
    left_out = ", ".join(f"{n:,} {why}" for why, n in skipped.most_common() if n)
    say(args, f"{len(functions):,} functions" + (f"; not called: {left_out}" if left_out else ""))
    if args.licence:
        functions = [replace(f, provenance={"licence": args.licence, **_known(f.provenance)}) for f in functions]
    if (args.endpoint is None) != (args.model is None):
        raise ValueError("--endpoint and --model go together")
    work = ExploreAndRecord(args.seed, args.budget, args.calls, args.endpoint, args.model or "")
    description = {"functions": [os.fspath(source) for source in args.sources], "tests": _named(args.tests)}
    described = {name: getattr(args, name) for name in ("licence", "seed", "budget", "calls", "model")}
    licences = [args.licence] if args.licence else []
    try:
        # A function takes seconds: few at a time, so that Ctrl-C keeps nearly all that is done.
        return _make(args, functions, _settings(args, licences), description | described, work, chunk_items=2)
    except EndpointError as error:
        raise ConnectionError(f"{error}; the same command goes on") from error


def _known(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in provenance.items() if name != "licence" or value is not None}


def _add_contests(kinds: Any) -> None:
    purpose = "Solutions of contests with their tests (JSONL as of CodeContests or APPS), right and wrong ones."
    parser = kinds.add_parser("contests", help=purpose, description=purpose)
    parser.set_defaults(make=_contests)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="*.jsonl")
    parser.add_argument("--licence", required=True, metavar="SPDX", help="of the data set; it is allowed")
    parser.add_argument("--solutions", type=positive, default=4, metavar="N", help="of a problem (default: 4)")
    parser.add_argument("--inputs", type=positive, default=2, metavar="N", help="of a solution (default: 2)")
    _add_common(parser)


def _contests(args: argparse.Namespace) -> Summary:
    from cwm_core.corpus.contests import read_contests, units

    problems = (problem for file in args.files for problem in read_contests(file))
    options = {"licence": args.licence, "seed": args.seed, "solutions": args.solutions, "inputs": args.inputs}
    description = {"contests": _named(args.files), **options}
    settings = _settings(args, licences={args.licence}, effects={"input"})
    return _make(args, units(problems, **options), settings, description)


def _add_repository(kinds: Any) -> None:
    purpose = "What a repository's own tests make its packages do."
    parser = kinds.add_parser("repository", help=purpose, description=purpose)
    parser.set_defaults(make=_repository)
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="the repository; it is copied")
    add("--package", action="append", default=[], metavar="NAME", help="to record (default: those of the repository)")
    add("--licence", metavar="SPDX", help="of the repository (default: what its licence files say)")
    add("--python", metavar="PYTHON", help="that runs the tests (default: this one, python3 of an image)")
    add("--image", metavar="IMAGE", help="run the tests in containers of this image, not in the sandbox")
    add("--test", action="append", default=[], metavar="ARG", help="given to pytest, as --test=-k --test=parse")
    add("--per-site", type=positive, default=1, metavar="N", help="traces of a call site (default: 1)")
    add("--per-function", type=positive, default=20, metavar="N", help="traces of a function (default: 20)")
    add("--suite-seconds", type=seconds, default=600.0, metavar="S", help="that the tests may take (default: 600)")
    _add_common(parser)


def _repository(args: argparse.Namespace) -> Summary:
    from cwm_core.corpus.filters.licence import Licences, of_folder
    from cwm_core.corpus.pipeline import filter_samples
    from cwm_core.corpus.repository import recorded_twice
    from cwm_core.environments import Task

    licence = args.licence or of_folder(args.path)
    settings = _settings(args, [args.licence] if args.licence else [])
    if settings.licences is not None and (drop := Licences(settings.licences).check(licence, "")):
        raise ValueError(
            f"{args.path}: {drop.reason}{f': {licence}' if licence else ''}. Give --licence SPDX if you know that its "
            "code may be used, or --any-licence"
        )
    options = {"per-site": args.per_site, "per-function": args.per_function, "max-frames": args.max_frames + 1}
    description = {
        "repository": os.fspath(args.path.absolute()),
        "packages": args.package,
        "licence": licence,
        "tests": args.test,
        "seed": args.seed,
        "options": options,
    }
    backend = machines("docker" if args.image else args.sandbox, args.image)
    samples = recorded_twice(
        lambda: backend.open(Task(args.path.name, "", folder=args.path)),
        args.output / "recordings",
        packages=args.package,
        python=args.python or ("python3" if args.image else sys.executable),
        arguments=args.test,
        options={**options, "seed": args.seed},
        seconds=args.suite_seconds,
        licence=licence,
        report=lambda text: say(args, text),
    )
    return _make(args, samples, settings, description, filter_samples)


def _add_describe(kinds: Any) -> None:
    purpose = "Ask a model to describe traces in words, and keep the descriptions that agree with them."
    parser = kinds.add_parser("describe", help=purpose, description=purpose)
    parser.set_defaults(run=_describe)
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="IN", help="*.cwmtraces, or a folder of them")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="chats, a JSON object a line (*.jsonl)")
    add("--endpoint", required=True, metavar="URL", help="of an OpenAI-compatible server, as http://localhost:8000/v1")
    add("--model", required=True, metavar="NAME", help="its name there")
    add("--attempts", type=positive, default=3, metavar="N", help="for a trace (default: 3)")
    add("--workers", type=positive, default=8, metavar="N", help="traces at a time (default: 8)")


def _describe(args: argparse.Namespace) -> int:
    from cwm_core.corpus.describe import Describer
    from cwm_core.corpus.descriptions import describe_stores
    from cwm_core.support.endpoint import Endpoint, EndpointError, chat_model

    describer = Describer(chat_model(Endpoint(args.endpoint), args.model, temperature=0.7), attempts=args.attempts)
    stores = [path for path in trace_files(args.inputs) if path.suffix == STORE]
    try:
        with counter(args, "traces") as show:
            counts = describe_stores(
                stores,
                args.output,
                describer,
                parallel=args.workers,
                progress=lambda counts: show(sum(counts)) if show else None,
            )
    except EndpointError as error:
        raise ConnectionError(f"{error}; the same command goes on") from error
    say(args, f"{counts.described:,} traces described, {counts.given_up:,} given up")
    for reason, times in describer.failures.most_common():
        say(args, f"{times:,} attempts: {reason}")
    return OK if counts.described else FAILED


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="folder of the corpus")
    add("--tokenizer", required=True, type=Path, metavar="FOLDER", help="a folder with tokenizer.json, or a rank file")
    add("--seed", type=not_negative, default=0, metavar="N", help="of all that is drawn (default: 0)")
    add("--workers", type=positive, default=os.cpu_count(), metavar="N", help="processes (default: one a processor)")
    add("--ray", action="store_true", help="work on a Ray cluster (RAY_ADDRESS, else this machine)")
    add("--max-frames", type=positive, default=2000, metavar="N", help="longer traces are dropped (default: 2000)")
    add("--max-tokens", type=positive, default=32768, metavar="N", help="so are longer documents (default: 32768)")
    add(
        "--context-tokens", type=positive, metavar="N",
        help="show of the source what a trace touches, in so many tokens (default: the whole file)",
    )  # fmt: skip
    add("--max-seconds", type=seconds, default=5.0, metavar="S", help="of a program (default: %(default)s)")
    add_json(parser)
    add("--any-licence", action="store_true", help="keep code of any licence, or of none that is known")
    add(
        "--evaluation-set", type=Path, action="append", default=[], metavar="FILE",
        help="*.jsonl of problems that must not be in the corpus",
    )  # fmt: skip
    add(
        "--allow-effect", action="append", default=[], metavar="NAME",
        help="keep programs that do more than compute: file, process, random, clock, ...",
    )  # fmt: skip
    add("--keep-secrets", action="store_true", help="do not look for secrets and personal data")
    add(
        "--sandbox", choices=("bubblewrap", "process"), default="bubblewrap",
        help="'process' only limits programs and does not isolate: for those you trust",
    )  # fmt: skip


def _settings(args: argparse.Namespace, licences: Iterable[str] = (), effects: Iterable[str] = ()) -> CorpusSettings:
    from dataclasses import replace

    from cwm_core.corpus.filters import PERMISSIVE
    from cwm_core.corpus.recording import CorpusSettings
    from cwm_core.corpus.sandbox import LIMITS

    return CorpusSettings(
        tokenizer=str(args.tokenizer.absolute()),
        max_frames=args.max_frames,
        max_tokens=args.max_tokens,
        context_tokens=args.context_tokens,
        allow_effects=frozenset([*args.allow_effect, *effects]),
        licences=None if args.any_licence else PERMISSIVE | frozenset(licences),
        evaluation_sets=tuple(str(path.absolute()) for path in args.evaluation_set),
        look_for_secrets=not args.keep_secrets,
        limits=replace(LIMITS, seconds=args.max_seconds),
        sandbox=args.sandbox,
    )


def _make(
    args: argparse.Namespace,
    items: Iterable[Any],
    settings: CorpusSettings,
    description: dict[str, Any],
    work: Work | None = None,
    **options: Any,
) -> Summary:
    from cwm_core.corpus.pipeline import make_corpus, record_units

    started = time.monotonic()

    def report(summary: Summary) -> None:
        kept = f"{summary.drops.kept:,} of {summary.drops.total:,} samples kept, {summary.tokens:,} tokens"
        say(args, f"{summary.items:,} items, {kept}, {time.monotonic() - started:.0f} s")

    try:
        with _pool(args) as pool, counter(args, "items") as show:
            return make_corpus(
                args.output,
                items,
                settings,
                description=description,
                work=work or record_units,
                pool=pool,
                progress=report,
                watch=show or (lambda items: None),
                **options,
            )
    except KeyboardInterrupt:
        warn(args, f"what is done is in {args.output}; the same command resumes")
        raise


def _pool(args: argparse.Namespace) -> AbstractContextManager[Pool]:
    from cwm_core.support.pool import processes, ray_cluster

    return ray_cluster() if args.ray else processes(args.workers)


def _named(paths: Iterable[Path]) -> list[str]:
    return [os.fspath(path.absolute()) for path in paths]


def _corpus(args: argparse.Namespace) -> int:
    from rich.console import Console

    from cwm_core.corpus.reasons import DropReason

    secrets.conceal()  # from the code that is recorded
    summary = args.make(args)
    if args.json:
        figures = {"items": summary.items, "tokens": summary.tokens, "kept": summary.drops.kept}
        write(json.dumps(figures | {"dropped": dict(summary.drops.reasons)}, indent=1) + "\n")
    else:
        Console().print(summary.drops.table())
    if summary.by_clock:
        warn(args, f"{summary.by_clock:,} samples were dropped by a clock: another run may keep them")
    if summary.drops.kept == 0:
        warn(args, f"nothing was kept in {args.output}")
    if summary.drops.total and set(summary.drops.reasons) == {DropReason.NOT_IMPORTED}:
        example = next(iter(summary.drops.examples.get(DropReason.NOT_IMPORTED, [])), "")
        raise ValueError(
            f"no module could be imported in the sandbox, so nothing was recorded: {example}. Install what the sources "
            f"need into the environment of {sys.executable}, and give the folder that they are imported from"
        )
    return OK
