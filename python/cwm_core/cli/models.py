"""`cwm train`, `cwm predict` and `cwm demo`."""

from __future__ import annotations

import argparse
import hashlib
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..trace import ParsedTrace, Trace
from .options import INTERRUPTED, OK, add_verb, load_tokenizer, new_file, positive, program, say, write

if TYPE_CHECKING:
    from cwm_core.inference import Engine


def add_train(verbs: Any) -> None:
    """Add `cwm train`."""
    parser = add_verb(
        verbs,
        _train,
        "Train a model as a TOML file describes, going on from its last checkpoint if there is one.",
        "cwm train configs/tiny.toml --set training.max_steps=200 --set output=runs/short\n"
        "  torchrun --nproc-per-node 8 -m cwm_core train configs/cwm-32b/pretrain.toml",
        "Ctrl-C ends the run after the current step, with a checkpoint; the same command goes on from there.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run; docs/command-line.md lists its keys")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the file; may be repeated"
    )


def _train(args: argparse.Namespace) -> int:
    from cwm_core.training.report import show_progress
    from cwm_core.training.run import RunConfig, run

    config = RunConfig.from_toml(args.config, args.set)
    is_main = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    with show_progress() if is_main else nullcontext() as on_step:
        reason = run(config, on_step)
    if reason == "signal":
        if is_main:
            say(args, f"interrupted; the same command goes on from the checkpoint in {config.output}")
        return INTERRUPTED
    if is_main:
        say(args, f"{config.output}: the model and its vocabulary")
    return OK


def add_predict(verbs: Any) -> None:
    """Add `cwm predict`."""
    parser = add_verb(
        verbs,
        _predict,
        "Predict the execution of a call with a model, without running the program.",
        "cwm predict runs/tiny sort.py --call 'bubble_sort([3, 1, 2])' --verify",
        "With --verify the program is also run and recorded, in a sandbox, to show where the prediction differs and\n"
        "how it scores. There it can import the packages installed here, but nothing that lies beside FILE.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="folder of a model with its tokenizer.json")
    parser.add_argument("file", metavar="FILE", help="the program")
    parser.add_argument("--call", required=True, metavar="EXPR", help="expression to predict, in FILE's names")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write the predicted trace, for `cwm view`")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=4096, metavar="N", help="stop after N tokens (default: 4096)"
    )
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="where to compute, as cuda (default: cpu)")
    parser.add_argument("--verify", action="store_true", help="run FILE's code in a sandbox, and compare")
    parser.add_argument(
        "--sandbox",
        choices=("bubblewrap", "process"),
        default="bubblewrap",
        help="of --verify; process limits FILE's code but does not isolate it, for code you trust",
    )
    parser.add_argument("--source-lines", action="store_true", help="hold predicted lines to those of FILE")


def _predict(args: argparse.Namespace) -> int:
    from cwm_core import evaluation, inference, view

    code = program(args.file, args.call)
    target = new_file(args.output) if args.output else None
    engine = load_engine(args.model, args.device)
    real = _run_for_real(args, code) if args.verify else None
    prediction = inference.predict_trace(
        engine, code, args.call, max_new_tokens=args.max_new_tokens, source_lines=args.source_lines
    )
    # As a whole trace, with what stood in the prompt, which is how it is stored and shown.
    prompt = inference.trace_prompt(engine.tokenizer, code, args.call)
    whole = engine.tokenizer.parse_trace(np.concatenate([prompt, prediction.ids]))
    if target:
        whole.trace.save(target)
    if real is None:
        write(view.terminal(whole.trace))
    else:
        write(view.terminal(real, predicted=whole))
        scores = asdict(evaluation.score_trace(real, prediction.parsed))
        for name, score in scores.items():
            write(f"{name:<12} {'-' if score is None else f'{score:.3f}'}\n")
    write(_verdict(prediction.parsed, args.max_new_tokens, len(prediction.ids)) + "\n")
    return OK


def _run_for_real(args: argparse.Namespace, code: str) -> Trace:
    from cwm_core.machines.programs import check_sandbox, installed_packages, record_program

    check_sandbox(args.sandbox)
    # A frame takes several tokens: no prediction can reach further than this.
    frames, packages = args.max_new_tokens, installed_packages()
    outcome = record_program(code, args.call, max_frames=frames, backend=args.sandbox, paths=packages, file=args.file)
    if outcome.value is None:
        raise ValueError(f"{args.file} gave no trace to compare with: {outcome.reason}")
    return outcome.value


def load_engine(folder: Path, device: str, *, keep_prefixes: bool = False) -> Engine:
    """An engine of a model's folder. Raises ValueError that names the folder for what is wrong in it or the device.

    With `keep_prefixes`, of the memory that the model leaves, half is for what is being generated, and three tenths
    for conversations that go on later.
    """
    from cwm_core import inference, model

    from .serve import free_memory

    tokenizer = load_tokenizer(folder)
    try:
        loaded = model.load(folder, device=device)
    except (RuntimeError, AssertionError) as error:  # RuntimeError: PyTorch has no such device
        raise ValueError(f"{folder}: {error}") from None
    if not keep_prefixes:
        return inference.Engine(loaded, tokenizer)
    free = free_memory(device)
    return inference.Engine(loaded, tokenizer, max_cache_bytes=free // 2, prefix_bytes=free * 3 // 10)


def fingerprint(engine: Engine) -> str:
    """Tells a model from one trained further in the same folder: a digest of some weights of each parameter."""
    digest = hashlib.sha256()
    for name, parameter in engine.model.named_parameters():
        some = parameter.detach().flatten()[:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def _verdict(parsed: ParsedTrace, limit: int, tokens: int) -> str:
    if parsed.complete:
        return f"The prediction is complete: {len(parsed.frames):,} frames, {tokens:,} tokens."
    if tokens >= limit:
        return f"The prediction did not end within {limit:,} tokens; {len(parsed.frames):,} whole frames were parsed."
    reason = parsed.error or "it ends between two frames"
    return f"The prediction breaks the form after {len(parsed.frames):,} frames: {reason}."


def add_demo(verbs: Any) -> None:
    """Add `cwm demo`."""
    parser = add_verb(
        verbs,
        _demo,
        "Go the whole way in little: record, tokenize, pack, train, predict and score.",
        "cwm demo --short --out demo",
    )
    parser.add_argument(
        "--out", default="cwm-demo", metavar="DIR", help="folder for what it writes (default: cwm-demo)"
    )
    parser.add_argument("--short", action="store_true", help="the same in about a minute, with worse scores")


def _demo(args: argparse.Namespace) -> int:
    from cwm_core import demo

    return demo.main(["--out", args.out, *(["--short"] if args.short else [])])
