"""Implement `cwm train`, `cwm predict`, `cwm demo` and `cwm ablation`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..trace import ParsedTrace, Trace
from .options import (
    INTERRUPTED,
    OK,
    add_json,
    add_model,
    add_tokenizer,
    add_verb,
    load_tokenizer,
    new_file,
    positive,
    program,
    say,
    warn,
    write,
)

if TYPE_CHECKING:
    from cwm_core.inference import Engine
    from cwm_core.model import Transformer
    from cwm_core.training import TrainingEnd
    from cwm_core.training.report import OnStep

    from ..tokenizer import Tokenizer


def add_train(verbs: Any) -> None:
    """Add `cwm train`."""
    parser = add_verb(
        verbs,
        _train,
        "Train a model as a TOML file describes, resuming from its last checkpoint if there is one.",
        "cwm train run.toml --init\n"
        "  cwm train configs/tiny.toml --set training.max_steps=200 --set output=runs/short\n"
        "  cwm train configs/tiny.toml --processes auto\n"
        "  torchrun --nproc-per-node 8 -m cwm_core train configs/cwm-32b/pretrain.toml",
        "Ctrl-C ends the run after the current step, with a checkpoint. The same command resumes it.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="TOML file that describes the run")
    parser.add_argument(
        "--init", action="store_true", help="write CONFIG, a new file with every key, its description and its default"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the file; repeatable",
    )
    parser.add_argument(
        "--processes",
        type=_processes,
        default=1,
        metavar="N",
        help="train on N processes of a CPU with one thread each; auto: one per core (default: 1, with all threads)",
    )


def _processes(text: str) -> int:
    """Parse a positive integer, or "auto", which becomes 0."""
    return 0 if text == "auto" else positive(text)


def _train(args: argparse.Namespace) -> int:
    if args.init:
        return _init(args)
    wait_passively()
    from cwm_core.training.processes import available_processes, run_processes
    from cwm_core.training.run import RunConfig, run

    config = RunConfig.from_toml(args.config, args.set)
    processes = args.processes or available_processes(config)
    if processes > 1 and "RANK" in os.environ:
        raise ValueError("--processes: torchrun has started the processes already")

    def start(on_step: OnStep | None) -> TrainingEnd:
        listeners = (on_step, lambda text: warn(args, f"warning: {text}"), lambda text: say(args, text))
        return run_processes(config, processes, *listeners) if processes > 1 else run(config, *listeners)

    return train(args, config.output, start)


def wait_passively() -> None:
    """Let threads of OpenMP sleep while they wait, unless the environment says otherwise; call this before PyTorch.

    Threads that spin take the cores from each other where other programs run beside them.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def train(args: argparse.Namespace, output: Path, run: Callable[[OnStep | None], TrainingEnd]) -> int:
    """Show the progress of a run of training, report how it ended, and return the exit code."""
    from cwm_core.training import TrainingEnd
    from cwm_core.training.report import show_progress

    is_main = os.environ.get("RANK", "0") == "0"  # only one of the processes of torchrun prints
    with show_progress() if is_main and not args.quiet else nullcontext() as on_step:
        reason = run(on_step)
    if reason is TrainingEnd.SIGNAL:
        if is_main:
            warn(args, f"interrupted; the same command resumes from the checkpoint in {output}")
        return INTERRUPTED
    if is_main:
        say(args, f"wrote the model and its vocabulary to {output}")
    return OK


def _init(args: argparse.Namespace) -> int:
    from cwm_core.training.template import template

    with new_file(args.config).open("x", encoding="utf-8") as file:
        file.write(template())
    say(args, f"wrote {args.config}: set output, tokenizer and data.sources, then run cwm train {args.config}")
    return OK


def add_predict(verbs: Any) -> None:
    """Add `cwm predict`."""
    parser = add_verb(
        verbs,
        _predict,
        "Predict the execution of a call with a model, without running the program.",
        "cwm predict sort.py --call 'bubble_sort([3, 1, 2])' --verify\n"
        "  cwm predict runs/tiny sort.py --call 'bubble_sort([3, 1, 2])' -o predicted.cwmtrace",
        "With --verify, the program also runs in a sandbox, and the command shows differences and scores. The program\n"
        "can import installed packages, but no files beside FILE.",
    )
    add_model(parser)
    parser.add_argument("file", metavar="FILE", help="Python file that defines the names in EXPR")
    parser.add_argument("--call", required=True, metavar="EXPR", help="expression to predict, such as 'f(3)'")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the predicted trace for `cwm view`")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=4096, metavar="N", help="limit of predicted tokens (default: 4096)"
    )
    add_tokenizer(parser)
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="PyTorch device, such as cuda (default: cpu)")
    parser.add_argument("--verify", action="store_true", help="run the program in a sandbox and compare")
    parser.add_argument(
        "--sandbox",
        choices=("bubblewrap", "process"),
        default="bubblewrap",
        help="isolation for --verify; 'process' provides none: use it only for trusted code (default: bubblewrap)",
    )
    add_json(parser)
    parser.add_argument("--source-lines", action="store_true", help="predict only lines of FILE")


def _predict(args: argparse.Namespace) -> int:
    from cwm_core import evaluation, inference, view

    code = program(args.file, args.call)
    target = new_file(args.output) if args.output else None
    engine = load_engine(chosen_model(args), args.device, args.tokenizer)
    real = _run_for_real(args, code) if args.verify else None
    prediction = inference.predict_trace(
        engine, code, args.call, max_new_tokens=args.max_new_tokens, source_lines=args.source_lines
    )
    # Store and show the whole trace, including the frame in the prompt.
    prompt = inference.trace_prompt(engine.tokenizer, code, args.call)
    whole = engine.tokenizer.parse_trace(np.concatenate([prompt, prediction.ids]))
    if target:
        whole.trace.save(target)
    scores = None if real is None else asdict(evaluation.score_trace(real, prediction.parsed))
    full_context = engine.max_length if len(prompt) + len(prediction.ids) >= engine.max_length else None
    verdict = _verdict(whole, args.max_new_tokens, len(prediction.ids), full_context)
    if args.json:
        result = {"complete": whole.complete, "verdict": verdict.strip(), "frames": len(whole.frames)}
        result |= {"tokens": len(prediction.ids), "text": whole.trace.to_text(), "scores": scores}
        write(json.dumps(result, indent=1) + "\n")
        return OK
    write(view.terminal(whole.trace) if real is None else view.terminal(real, predicted=whole))
    for name, score in (scores or {}).items():
        write(f"{name:<12} {'-' if score is None else f'{score:.3f}'}\n")
    write(verdict)
    return OK


def _run_for_real(args: argparse.Namespace, code: str) -> Trace:
    from cwm_core.machines.programs import check_sandbox, installed_packages, record_program

    check_sandbox(args.sandbox)
    # A frame takes several tokens, so no prediction has more frames than this.
    frames, packages = args.max_new_tokens, installed_packages()
    outcome = record_program(code, args.call, max_frames=frames, sandbox=args.sandbox, paths=packages, file=args.file)
    if outcome.value is None:
        raise ValueError(f"{args.file}: the run left no trace to compare with: {outcome.reason}")
    return outcome.value


def chosen_model(args: argparse.Namespace) -> Path | None:
    """Return the model folder of the arguments. Without one, say that the shipped model is used, and return None."""
    if args.model is not None:
        return Path(args.model)
    if args.tokenizer is not None:
        raise ValueError("--tokenizer needs MODEL: the shipped model has its own vocabulary")
    say(args, "no MODEL given: using the small model of the package, trained on short generated programs")
    return None


def load_model(folder: Path | None, device: str, tokenizer: Path | None = None) -> tuple[Transformer, Tokenizer]:
    """Load a model and its vocabulary.

    Args:
        folder: Folder of the model; None loads the shipped model.
        device: PyTorch device.
        tokenizer: Path of the vocabulary. Defaults to the model's folder.

    Raises:
        ValueError: The folder or the device is invalid; the message names the folder.
        OSError: A file cannot be read.
    """
    from cwm_core import model

    if folder is None:
        return _load_shipped(device)
    if tokenizer is None and folder.is_dir() and not (folder / "tokenizer.json").exists():
        raise FileNotFoundError(f"{folder} has no tokenizer.json: name the model's vocabulary with --tokenizer")
    vocabulary = load_tokenizer(tokenizer or folder)
    try:
        loaded = model.load(folder, device=device)
        loaded.config.check_tokenizer(vocabulary)
    except (RuntimeError, AssertionError, ValueError) as error:  # RuntimeError: PyTorch has no such device
        message = str(error)
        raise ValueError(message if str(folder) in message else f"{folder}: {message}") from None
    return loaded, vocabulary


def _load_shipped(device: str) -> tuple[Transformer, Tokenizer]:
    from cwm_core import model

    try:
        return model.load_shipped(device)
    except (RuntimeError, AssertionError) as error:  # PyTorch has no such device
        raise ValueError(str(error)) from None


def load_engine(
    folder: Path | None,
    device: str,
    tokenizer: Path | None = None,
    *,
    keep_prefixes: bool = False,
    cache_bytes: int | None = None,
) -> Engine:
    """Load a model into an engine; raise the same errors as `load_model`.

    The cache may use 80 % of the memory that the model leaves free; with `keep_prefixes`, it may use 50 %, and copies
    of prefixes for later turns of conversations 30 %. `cache_bytes` overrides the limit of the cache.
    """
    from cwm_core import inference

    from .serve import free_memory

    loaded, vocabulary = load_model(folder, device, tokenizer)
    free = free_memory(device)
    if not keep_prefixes:
        return inference.Engine(loaded, vocabulary, max_cache_bytes=cache_bytes or free * 8 // 10)
    return inference.Engine(loaded, vocabulary, max_cache_bytes=cache_bytes or free // 2, prefix_bytes=free * 3 // 10)


def fingerprint(engine: Engine) -> str:
    """Return a digest of some weights of each parameter, which changes when training continues in the folder."""
    digest = hashlib.sha256()
    for name, parameter in engine.model.named_parameters():
        some = parameter.detach().flatten()[:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def named_tokenizer(args: argparse.Namespace) -> dict[str, str]:
    """Return the setting of results that depends on `--tokenizer`; empty for the vocabulary in the model's folder."""
    return {} if args.tokenizer is None else {"tokenizer": str(args.tokenizer)}


def _verdict(whole: ParsedTrace, limit: int, tokens: int, full_context: int | None) -> str:
    """Return one line on how a prediction ended. The number of frames includes the first one, as in the views."""
    frames = f"{len(whole.frames):,} whole frame{'' if len(whole.frames) == 1 else 's'}"
    if whole.complete:
        return f"The prediction is complete: {frames}, {tokens:,} tokens.\n"
    if full_context is not None:
        return f"The prediction did not end: the model's context of {full_context:,} tokens is full after {frames}.\n"
    if tokens >= limit:
        return f"The prediction did not end within {limit:,} tokens; it has {frames}.\n"
    reason = whole.error or "it ends between two frames"
    return f"The prediction breaks the trace format after {frames}: {reason}.\n"


def add_demo(verbs: Any) -> None:
    """Add `cwm demo`."""
    parser = add_verb(
        verbs,
        _demo,
        "Run the full pipeline at a small scale: record, tokenize, pack, train, predict, and score.",
        "cwm demo --short -o demo",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("cwm-demo"),
        metavar="DIR",
        help="folder for all results (default: cwm-demo)",
    )
    parser.add_argument("--short", action="store_true", help="run for about a minute, with worse scores")


def _demo(args: argparse.Namespace) -> int:
    wait_passively()
    from cwm_core.demo import run_demo

    run_demo(args.output, short=args.short)
    return OK


def add_ablation(verbs: Any) -> None:
    """Add `cwm ablation`."""
    parser = add_verb(
        verbs,
        _ablation,
        "Measure what traces teach: train models on different documents of the same programs, and compare them.",
        "cwm ablation --workers 2 -o ablation",
        "DIR gets a report, its figures, all results, and the models. The same command resumes an interrupted run.\n"
        "More --seeds add models. docs/ablation.md explains the design.",
    )
    add = parser.add_argument
    add(
        "-o", "--output", type=Path, default=Path("cwm-ablation"), metavar="DIR",
        help="folder for all results (default: cwm-ablation)",
    )  # fmt: skip
    add("--short", action="store_true", help="use sizes for about ten minutes, too small for conclusions")
    add("--seeds", type=positive, metavar="N", help="models of each arm (default: 5, with --short 2)")
    add("--tokens", type=positive, metavar="N", help="training tokens of each model (default: by size)")
    add("--problems", type=positive, metavar="N", help="programs in each held-out set of a seed (default: by size)")
    add("--workers", type=positive, default=1, metavar="N", help="processes with one thread each (default: 1)")
    add(
        "--sandbox", choices=("bubblewrap", "process"), default="bubblewrap",
        help="isolation of repaired programs; 'process' provides none (default: bubblewrap)",
    )  # fmt: skip


def _ablation(args: argparse.Namespace) -> int:
    from cwm_core.ablation import run_ablation

    report = run_ablation(
        args.output,
        short=args.short,
        seeds=args.seeds,
        tokens=args.tokens,
        problems=args.problems,
        workers=args.workers,
        sandbox=args.sandbox,
        quiet=args.quiet,
    )
    write(report)
    say(args, f"wrote the report, its figures, and all results to {args.output}")
    return OK
