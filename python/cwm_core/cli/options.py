"""What the verbs of the command share: how they are added, what they say, the types of their arguments."""

from __future__ import annotations

import argparse
import sys
import threading
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..tokenizer import Tokenizer
from ..trace import Recorder, Trace
from ..trace.entry import script_folder, script_state

if TYPE_CHECKING:
    from ..machines import Backend

OK, FAILED, INTERRUPTED = 0, 1, 130

EXTRAS = {
    "torch": "train", "rich": "train", "safetensors": "train", "pyarrow": "parquet", "tensorboard": "tensorboard",
    "torchao": "float8", "starlette": "serve", "uvicorn": "serve", "prometheus_client": "serve", "rensa": "corpus",
    "license_expression": "corpus", "detect_secrets": "corpus", "phonenumbers": "corpus", "ray": "ray",
    "hypothesis": "corpus", "httpx": "http",
    "docker": "docker", "libcst": "environments", "backports.zstd": "zstd",
}  # fmt: skip


def add_verb(verbs: Any, run: Any, purpose: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """Add the verb that `run` is named after."""
    parser = verbs.add_parser(
        run.__name__.removeprefix("_"),
        help=purpose,
        description=f"{purpose}\n\n{more}".strip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_tokenizer(parser: argparse._ActionsContainer) -> None:
    """Add the option `--tokenizer` of a verb that takes a model."""
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="vocabulary of the model (default: tokenizer.json in its folder)"
    )


def add_cache(parser: argparse._ActionsContainer) -> None:
    """Add the option `--cache-gib` of a verb that generates many sequences at a time."""
    parser.add_argument(
        "--cache-gib", type=positive, metavar="N", help="memory for keys and values (default: 80%% of what is free)"
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a vocabulary; an error of what is in it names the path."""
    try:
        return Tokenizer.load(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def new_file(path: str | Path) -> Path:
    """The absolute path, checked before the work whose result it is to hold; the program may change the folder."""
    target = Path(path).absolute()
    if target.is_dir():
        raise IsADirectoryError(21, "expected a file to write, this is a folder", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "no such folder to write to", str(target.parent))
    return target


def summary(trace: Trace) -> str:
    """One line on a trace, fit for a terminal."""
    from cwm_core import view

    return view.terminal(trace, limit=0, color=False).splitlines()[0]


def sentence(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        return f"this needs {error.name}: pip install 'cwm-core[{EXTRAS[str(error.name)]}]'"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's, a GPU's, or what PyTorch asked the system for."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


def say(args: argparse.Namespace, text: str) -> None:
    """Say something about the work on standard error."""
    print(f"cwm {args.verb}: {text}", file=sys.stderr)


def write(text: str) -> None:
    """Write to standard output, what its encoding lacks as escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def positive(text: str) -> int:
    """Type of an argument: a whole number from 1."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Type of an argument: a whole number from 0."""
    return _at_least(0, text)


def loop_budget(text: str) -> tuple[int, int]:
    """Type of an argument: FIRST,LAST."""
    first, comma, last = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST,LAST")
    return not_negative(first), positive(last)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
    return int(text)


def seconds(text: str) -> float:
    """Type of an argument: a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def share(text: str) -> float:
    """Type of an argument: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


@contextmanager
def counter(unit: str = "traces") -> Iterator[Callable[[int], None] | None]:
    """What shows how many traces are done, or of another unit, where a person looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.1:
            shown = time.monotonic()
            print(f"\r{done:,} {unit}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


@contextmanager
def status_line() -> Iterator[Callable[[str], None] | None]:
    """Show a text and how long the work has taken, every second, where a person looks on."""
    if not sys.stderr.isatty():
        yield None
        return
    started, text, ended = time.monotonic(), "starting", threading.Event()

    def show(new: str) -> None:
        nonlocal text
        text = new

    def draw() -> None:
        while True:
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            print(f"\r\033[K{minutes}:{seconds:02} {text}", end="", file=sys.stderr, flush=True)
            if ended.wait(1.0):
                return

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield show
    finally:
        ended.set()
        thread.join()
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def machines(kind: str, image: str | None = None) -> Backend:
    """The backend of environments that `--sandbox` names. Raises SandboxError where it is not possible."""
    from ..machines import DockerBackend, SandboxBackend
    from ..machines.programs import check_sandbox, installed_packages

    if kind == "docker":
        return DockerBackend(image)
    check_sandbox(kind)
    return SandboxBackend(kind, readable=installed_packages())  # tests want pytest


def record_call(
    recorder: Recorder,
    file: str,
    code: str,
    call: str,
    program_args: Sequence[str] = (),
    *,
    name: str = "__main__",
) -> Trace:
    """Record a call in a file as `record_source` does, with the arguments and the import path of a script.

    Raises:
        ValueError: The module's body raised.
    """
    try:
        with script_state([file, *program_args], script_folder(file)):
            return recorder.record_source(code, call, name=name, file=file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = f"{file} raised {error!r} before the call, so there is nothing to record"
        if isinstance(error, SystemExit) and name == "__main__":
            message += "; with --as-module, the part under if __name__ == '__main__' does not run"
        raise ValueError(message) from error


def program(file: str, call: str) -> str:
    """The text of a program that compiles, as does the call. Raises OSError and SyntaxError."""
    with tokenize.open(file) as source:
        code = source.read()
    compile(code, file, "exec", dont_inherit=True)
    compile(call, "--call", "eval", dont_inherit=True)
    return code
