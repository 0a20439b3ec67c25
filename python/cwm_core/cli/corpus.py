"""Implement `cwm corpus`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..corpus.effects import Effect
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
        "Make a corpus: run untrusted code in bulk and keep the traces worth training on.",
        "cwm corpus contests problems.jsonl --license CC-BY-4.0 --tokenizer vocabulary -o corpus",
        "Every program runs twice, under two hash seeds, each time in a new process in a sandbox. DIR gets traces and\n"
        "token shards, ready for training. An interrupted or killed run resumes with the same command.\n"
        "docs/guides/corpus.md explains which traces are kept and why.",
    )
    kinds = parser.add_subparsers(title="what to record", dest="kind", metavar="KIND", required=True)
    _add_functions(kinds)
    _add_contests(kinds)
    _add_repository(kinds)
    _add_source(kinds)
    _add_programs(kinds)
    _add_describe(kinds)


def _add_functions(kinds: Any) -> None:
    purpose = "Call the functions of files, packages, and snippets with inputs that reach as many lines as possible."
    parser = kinds.add_parser("functions", help=purpose, description=purpose)
    parser.set_defaults(make=_functions)
    add = parser.add_argument
    add(
        "sources", nargs="+", metavar="SOURCE",
        help="a *.py file, the name or folder of a package, or a *.jsonl file of snippets",
    )  # fmt: skip
    add(
        "--tests", type=Path, action="append", default=[], metavar="PATH",
        help="file or folder with calls to use as examples",
    )  # fmt: skip
    add("--license", metavar="SPDX", help="license of sources that do not state theirs, which is then allowed")
    add("--budget", type=positive, default=100, metavar="N", help="calls to try for each function (default: 100)")
    add("--calls", type=positive, default=5, metavar="N", help="calls to record for each function (default: 5)")
    add("--endpoint", metavar="URL", help="OpenAI-compatible server to ask for calls too")
    add("--model", metavar="NAME", help="name of the model on the server")
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
    if args.license:
        functions = [replace(f, provenance=_with_license(f.provenance, args.license)) for f in functions]
    if (args.endpoint is None) != (args.model is None):
        raise ValueError("--endpoint and --model go together")
    work = ExploreAndRecord(args.seed, args.budget, args.calls, args.endpoint, args.model or "")
    description = {"functions": [os.fspath(source) for source in args.sources], "tests": _absolute(args.tests)}
    described = {name: getattr(args, name) for name in ("license", "seed", "budget", "calls", "model")}
    licenses = [args.license] if args.license else []
    try:
        # A function takes seconds: with few at a time, Ctrl-C keeps nearly all that is done.
        return _make(args, functions, _settings(args, licenses), description | described, work, chunk_items=2)
    except EndpointError as error:
        raise ConnectionError(f"{error}; run the same command to resume") from error


def _with_license(provenance: Mapping[str, Any], license: str) -> dict[str, Any]:
    """Return the provenance with this license, unless it states one."""
    return {"license": license, **{name: value for name, value in provenance.items() if name != "license" or value}}


def _add_contests(kinds: Any) -> None:
    purpose = "Run right and wrong solutions of contests on their tests (JSONL of CodeContests or APPS)."
    parser = kinds.add_parser("contests", help=purpose, description=purpose)
    parser.set_defaults(make=_contests)
    add = parser.add_argument
    add("files", nargs="+", type=Path, metavar="FILE", help="*.jsonl")
    add("--license", required=True, metavar="SPDX", help="license of the data set; it is allowed")
    add("--solutions", type=positive, default=4, metavar="N", help="solutions of each problem (default: 4)")
    add("--inputs", type=positive, default=2, metavar="N", help="inputs of each solution (default: 2)")
    _add_common(parser)


def _contests(args: argparse.Namespace) -> Summary:
    from cwm_core.corpus.contests import read_contests, units

    problems = (problem for file in args.files for problem in read_contests(file))
    options = {"license": args.license, "seed": args.seed, "solutions": args.solutions, "inputs": args.inputs}
    description = {"contests": _absolute(args.files), **options}
    settings = _settings(args, licenses={args.license}, effects={Effect.INPUT})
    return _make(args, units(problems, **options), settings, description)


def _add_repository(kinds: Any) -> None:
    purpose = "Run the tests of a repository and record the calls of its packages."
    parser = kinds.add_parser("repository", help=purpose, description=purpose)
    parser.set_defaults(make=_repository)
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="repository to record, which is copied first")
    add(
        "--package", action="append", default=[], metavar="NAME",
        help="package to record (default: those of the repository)",
    )  # fmt: skip
    add("--license", metavar="SPDX", help="license of the repository (default: from its license files)")
    add(
        "--python", metavar="PYTHON",
        help="command of the Python that runs the tests (default: this one, or python3 in an image)",
    )  # fmt: skip
    add("--image", metavar="IMAGE", help="run the tests in containers of this image, not in the sandbox")
    add("--test", action="append", default=[], metavar="ARG", help="argument for pytest: --test=-k --test=parse")
    add("--per-site", type=positive, default=1, metavar="N", help="traces of each call site (default: 1)")
    add("--per-function", type=positive, default=20, metavar="N", help="traces of each function (default: 20)")
    add("--suite-seconds", type=seconds, default=600.0, metavar="S", help="time limit of the tests (default: 600)")
    _add_common(parser)


def _repository(args: argparse.Namespace) -> Summary:
    from cwm_core.corpus.filters.license import Licenses, of_folder
    from cwm_core.corpus.pipeline import filter_samples
    from cwm_core.corpus.repository import recorded_twice
    from cwm_core.environments import Task

    license = args.license or of_folder(args.path)
    settings = _settings(args, [args.license] if args.license else [])
    if settings.licenses is not None and (drop := Licenses(settings.licenses).check(license, "")):
        raise ValueError(
            f"{args.path}: {drop.reason}{f': {license}' if license else ''}. Give --license SPDX if you know that its "
            "code may be used, or --any-license"
        )
    options = {"per-site": args.per_site, "per-function": args.per_function, "max-frames": args.max_frames + 1}
    description = {
        "repository": os.fspath(args.path.absolute()),
        "packages": args.package,
        "license": license,
        "tests": args.test,
        "seed": args.seed,
        "options": options,
    }
    backend = machines("docker" if args.image else args.sandbox, args.image)
    samples = recorded_twice(
        lambda: backend.open(Task(args.path.name, "", folder=args.path)),
        args.output / "recordings",
        packages=args.package,
        python=args.python or ("python3" if args.image else shlex.quote(sys.executable)),
        arguments=args.test,
        options={**options, "seed": args.seed},
        seconds=args.suite_seconds,
        license=license,
        report=lambda text: say(args, text),
    )
    return _make(args, samples, settings, description, filter_samples)


def _add_source(kinds: Any) -> None:
    purpose = "Run what a Python function of your own yields."
    parser = kinds.add_parser(
        "source",
        help=purpose,
        description=f"{purpose} It is called with the arguments as strings and must yield cwm_core.corpus.unit.Unit "
        "objects, the same ones in every run.",
    )
    parser.set_defaults(make=_source)
    add = parser.add_argument
    add("function", metavar="MODULE:NAME", help="import path of the function; the current folder is searched too")
    add("arguments", nargs="*", metavar="ARG", help="arguments of the function")
    add("--license", metavar="SPDX", help="license of units that do not state theirs, which is then allowed")
    _add_common(parser)


def _source(args: argparse.Namespace) -> Summary:
    from dataclasses import replace

    units = _extension(args.function)(*args.arguments)
    if args.license:
        units = (replace(unit, provenance=_with_license(unit.provenance, args.license)) for unit in units)
    description = {"source": args.function, "arguments": args.arguments, "license": args.license}
    return _make(args, units, _settings(args, [args.license] if args.license else []), description)


def _extension(path: str) -> Any:
    """Return the object of an import path. The processes of a pool can import it from the current folder too."""
    from ..support.imports import import_object

    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return import_object(path)


def _add_programs(kinds: Any) -> None:
    purpose = "Generate small programs and classic algorithms, and record them: no sandbox, no tokenizer needed."
    parser = kinds.add_parser(
        "programs",
        help=purpose,
        description=f"{purpose} DIR/train gets one trace store for each kind of program, DIR/held-out those for "
        "evaluation. The two have no program in common, even up to names.",
    )
    parser.set_defaults(run=_programs)
    add = parser.add_argument
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="new folder for the trace stores")
    add("--basic", type=not_negative, default=0, metavar="N", help="programs of the basic distribution (default: 0)")
    add("--wide", type=not_negative, default=0, metavar="N", help="programs of the wide distribution (default: 0)")
    add(
        "--algorithm-calls", type=not_negative, default=0, metavar="N",
        help="calls of each classic algorithm (default: 0)",
    )  # fmt: skip
    add("--held-out", type=positive, default=500, metavar="N", help="programs of each kind to keep (default: 500)")
    add("--seed", type=not_negative, default=0, metavar="N", help="seed of the programs, below 100 (default: 0)")


def _programs(args: argparse.Namespace) -> int:
    from cwm_core.corpus.programs import ProgramCounts, record_programs

    counts = ProgramCounts(args.basic, args.wide, args.algorithm_calls)
    with counter(args, "programs") as show:
        recorded = record_programs(args.output, counts, args.seed, args.held_out, show or (lambda programs: None))
    for store, traces in recorded.items():
        say(args, f"{args.output / store}: {traces:,} traces")
    return OK


def _add_describe(kinds: Any) -> None:
    purpose = "Ask a model to describe traces in words, and keep the descriptions that agree with the traces."
    parser = kinds.add_parser("describe", help=purpose, description=purpose)
    parser.set_defaults(run=_describe)
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="IN", help="*.cwmtraces, or a folder of them")
    add("-o", "--output", required=True, type=Path, metavar="FILE", help="file for chats, one JSON object per line")
    add(
        "--endpoint", required=True, metavar="URL",
        help="OpenAI-compatible server, such as http://localhost:8000/v1",
    )  # fmt: skip
    add("--model", required=True, metavar="NAME", help="name of the model on the server")
    add("--attempts", type=positive, default=3, metavar="N", help="attempts for each trace (default: 3)")
    add("--workers", type=positive, default=8, metavar="N", help="traces at a time (default: 8)")
    add_json(parser)


def _describe(args: argparse.Namespace) -> int:
    from cwm_core.corpus.describe import Describer
    from cwm_core.corpus.descriptions import describe_stores
    from cwm_core.support.endpoint import Endpoint, EndpointError, chat_model

    describer = Describer(chat_model(Endpoint(args.endpoint), args.model, temperature=0.7), attempts=args.attempts)
    stores = [path for path in trace_files(args.inputs) if path.suffix.lower() == STORE]
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
        raise ConnectionError(f"{error}; run the same command to resume") from error
    if args.json:
        write(json.dumps(counts._asdict() | {"failures": dict(describer.failures.most_common())}, indent=1) + "\n")
    else:
        say(args, f"{counts.described:,} traces described, {counts.given_up:,} given up")
        for reason, times in describer.failures.most_common():
            say(args, f"{times:,} attempts: {reason}")
    return OK if counts.described else FAILED


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-o", "--output", required=True, type=Path, metavar="DIR", help="folder of the corpus")
    add(
        "--tokenizer", required=True, type=Path, metavar="PATH",
        help="folder with tokenizer.json, or a rank file",
    )  # fmt: skip
    add("--seed", type=not_negative, default=0, metavar="N", help="seed of all random choices (default: 0)")
    add(
        "--workers", type=positive, default=os.cpu_count(), metavar="N",
        help="number of processes (default: one per processor)",
    )  # fmt: skip
    add("--ray", action="store_true", help="run on the Ray cluster of RAY_ADDRESS, or on this machine with Ray")
    add("--max-frames", type=positive, default=2000, metavar="N", help="drop longer traces (default: 2000)")
    add("--max-tokens", type=positive, default=32768, metavar="N", help="drop longer documents (default: 32768)")
    add(
        "--context-tokens", type=positive, metavar="N",
        help="show only what a trace touches of its source, in at most N tokens (default: the whole file)",
    )  # fmt: skip
    add("--max-seconds", type=seconds, default=5.0, metavar="S", help="time limit of a program (default: %(default)s)")
    add_json(parser)
    add("--any-license", action="store_true", help="keep code with any license or an unknown one")
    add(
        "--evaluation-set", type=Path, action="append", default=[], metavar="FILE",
        help="*.jsonl of problems that must not be in the corpus",
    )  # fmt: skip
    add(
        "--allow-effect", action="append", default=[], choices=list(Effect), metavar="NAME",
        help=f"keep programs with this effect: {', '.join(Effect)}",
    )  # fmt: skip
    add(
        "--filter", action="append", default=[], metavar="MODULE:NAME",
        help="import path of a filter of your own; the current folder is searched too",
    )  # fmt: skip
    add("--keep-secrets", action="store_true", help="do not search for secrets and personal data")
    add(
        "--sandbox", choices=("bubblewrap", "process"), default="bubblewrap",
        help="'process' limits resources but provides no isolation: use it only for trusted programs",
    )  # fmt: skip


def _settings(args: argparse.Namespace, licenses: Iterable[str] = (), effects: Iterable[str] = ()) -> CorpusSettings:
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
        licenses=None if args.any_license else PERMISSIVE | frozenset(licenses),
        evaluation_sets=tuple(str(path.absolute()) for path in args.evaluation_set),
        look_for_secrets=not args.keep_secrets,
        limits=replace(LIMITS, seconds=args.max_seconds),
        sandbox=args.sandbox,
        filters=tuple(map(_extension, args.filter)),
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
        warn(args, f"interrupted; finished work is in {args.output}; the same command resumes")
        raise


def _pool(args: argparse.Namespace) -> AbstractContextManager[Pool]:
    from cwm_core.support.pool import processes, ray_cluster

    return ray_cluster() if args.ray else processes(args.workers)


def _absolute(paths: Iterable[Path]) -> list[str]:
    return [os.fspath(path.absolute()) for path in paths]


def _corpus(args: argparse.Namespace) -> int:
    from rich.console import Console

    from cwm_core.corpus.reasons import DropReason

    secrets.conceal()  # from recorded code
    summary = args.make(args)
    if args.json:
        figures = {"items": summary.items, "tokens": summary.tokens, "kept": summary.drops.kept}
        write(json.dumps(figures | {"dropped": dict(summary.drops.reasons)}, indent=1) + "\n")
    else:
        Console().print(summary.drops.table())
    if summary.by_clock:
        warn(args, f"{summary.by_clock:,} samples were dropped by a time limit; another run may keep them")
    if summary.drops.kept == 0:
        warn(args, f"nothing was kept in {args.output}")
    if summary.drops.total and set(summary.drops.reasons) == {DropReason.NOT_IMPORTED}:
        example = next(iter(summary.drops.examples.get(DropReason.NOT_IMPORTED, [])), "")
        raise ValueError(
            f"no module could be imported in the sandbox, so nothing was recorded: {example}. Install what the sources "
            f"need into the environment of {sys.executable}, and give the folder that they are imported from"
        )
    return OK
