"""The `cwm` command. `docs/reference/command-line.md` describes its verbs."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import version

from ..machines import SandboxError
from .agent import add_agent
from .completion import add_completion
from .convert import add_export, add_import
from .corpus import add_corpus
from .debug import add_debug
from .evaluate import add_eval
from .forage import add_forage
from .inspect import add_inspect
from .interrupt import Interruptible
from .models import add_ablation, add_demo, add_predict, add_train
from .options import EXTRAS, FAILED, INTERRUPTED, add_quiet, is_out_of_memory, sentence, warn
from .plan import add_plan
from .record import add_record, add_view
from .rl import add_rl
from .serve import add_serve
from .shards import add_pack, add_tokenize


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 for success, 1 for failure, 130 after an interrupt.

    Args:
        argv: Arguments after the command's name. If None, they come from `sys.argv`, and Ctrl-C ends the process.

    Raises:
        SystemExit: The usage is wrong (code 2), or `--help` or `--version` was given (code 0).
    """
    args = _parse(list(sys.argv[1:] if argv is None else argv))
    args.owns_process = argv is None
    if argv is not None or threading.current_thread() is not threading.main_thread():
        return _report_errors(args)  # the caller handles signals itself
    with Interruptible(args.verb) as interruptible:
        interruptible.exit_code = _report_errors(args, interruptible)
    return interruptible.exit_code


def _report_errors(args: argparse.Namespace, interruptible: Interruptible | None = None) -> int:
    try:
        return _run(args, interruptible)
    except KeyboardInterrupt:
        warn(args, "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output closed it; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (
        OSError,
        ValueError,
        SyntaxError,
        FloatingPointError,
        ModuleNotFoundError,
        SandboxError,
    ) as error:
        is_ours = not isinstance(error, ModuleNotFoundError) or error.name in EXTRAS
        if not is_ours or os.environ.get("CWM_TRACEBACK"):
            raise
        warn(args, sentence(error))
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error) or os.environ.get("CWM_TRACEBACK"):
            raise
        warn(args, f"out of memory; use a smaller model, shorter texts or smaller batches: {sentence(error)[:300]}")
        return FAILED


def _run(args: argparse.Namespace, interruptible: Interruptible | None) -> int:
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except Exception as error:
        if interruptible is not None and interruptible.is_interrupted:
            raise KeyboardInterrupt from error  # a library replaced the exception of Ctrl-C by its own
        raise


def commands(parser: argparse.ArgumentParser, name: str = "cwm") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the full name and the parser of every command that runs something, such as `cwm corpus functions`."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for verb, child in group.choices.items():
            yield from commands(child, f"{name} {verb}")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="cwm",
        description="Record Python programs, turn the traces into training data, train models on them, and predict\n"
        "executions.",
        epilog="exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted by Ctrl-C.\n"
        "Set CWM_TRACEBACK=1 in the environment to see the traceback of an error.\n"
        "`cwm VERB --help` explains a verb.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cwm {version('cwm-core')}")
    verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
    adds = (
        add_corpus,
        add_record,
        add_view,
        add_import,
        add_export,
        add_tokenize,
        add_pack,
        add_inspect,
        add_plan,
        add_train,
        add_rl,
        add_predict,
        add_debug,
        add_eval,
        add_serve,
        add_forage,
        add_agent,
        add_demo,
        add_ablation,
        add_completion,
    )
    for add in adds:
        add(verbs)
    for _, command in commands(parser):
        add_quiet(command)
        command.set_defaults(error=command.error)
    return parser


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = build_parser()
    program_args: list[str] = []
    if argv[:1] == ["record"] and "--" in argv:  # argparse would mix these with FILE
        at = argv.index("--")
        argv, program_args = argv[:at], argv[at + 1 :]
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        args.error(f"unrecognized arguments: {' '.join(unknown)}")  # with the usage of the verb, not that of `cwm`
    args.program_args = program_args
    return args
