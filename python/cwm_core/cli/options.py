"""Helpers that all verbs share: options, argument types, messages and progress."""

from __future__ import annotations

import argparse
import sys
import threading
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..tokenizer import Tokenizer
from ..trace import Recorder, Trace
from ..trace.entry import script_folder, script_state

if TYPE_CHECKING:
    from ..machines import Backend, Sandbox

OK, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

MAX_SECONDS = 2_000_000
"""Longest time limit that an option accepts, about 23 days. Some functions of the operating system wait at most 24."""

EXTRAS = {
    "torch": "train", "rich": "train", "safetensors": "train", "pyarrow": "parquet", "tensorboard": "tensorboard",
    "matplotlib": "plots",
    "torchao": "float8", "starlette": "serve", "uvicorn": "serve", "prometheus_client": "serve", "rensa": "corpus",
    "license_expression": "corpus", "detect_secrets": "corpus", "phonenumbers": "corpus", "ray": "ray",
    "hypothesis": "corpus", "httpx": "http",
    "docker": "docker", "libcst": "environments", "backports.zstd": "zstd",
}  # fmt: skip


def add_verb(verbs: Any, run: Any, purpose: str, example: str, more: str = "") -> argparse.ArgumentParser:
    """Add a verb with the name of `run`, without the leading underscore, and return its parser."""
    parser: argparse.ArgumentParser = verbs.add_parser(
        run.__name__.removeprefix("_"),
        help=purpose,
        description=f"{purpose}\n\n{more}".strip(),
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse._ActionsContainer) -> None:
    """Add the argument MODEL, which defaults to the shipped model. See `models.chosen_model`."""
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="MODEL", help="model folder (default: the model in the package)"
    )


def add_tokenizer(parser: argparse._ActionsContainer) -> None:
    """Add `--tokenizer`, for verbs that load a model."""
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="the model's vocabulary (default: tokenizer.json in its folder)"
    )


def add_cache(parser: argparse._ActionsContainer) -> None:
    """Add `--cache-gib`, for verbs that generate many sequences at a time."""
    parser.add_argument(
        "--cache-gib", type=positive, metavar="N", help="GiB for the key/value cache (default: 80%% of free memory)"
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add `--json`, for verbs that print a result."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add `--quiet`, which every verb has."""
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print progress or notes; still print errors")


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a vocabulary. Raise ValueError, with the path in the message, if it is invalid."""
    return Tokenizer.load(path)


def new_file(path: str | Path) -> Path:
    """Return the absolute path of an output file, after checking that its folder exists.

    Verbs call it before the work starts, because a recorded program may change the working directory.
    """
    target = Path(path).absolute()
    if target.is_dir():
        raise IsADirectoryError(21, "expected a file to write, got a folder", str(target))
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "no such folder to write to", str(target.parent))
    return target


def summary(trace: Trace) -> str:
    """Return a one-line description of a trace for a terminal."""
    from cwm_core import view

    return view.terminal(trace, limit=0, color=False).splitlines()[0]


def sentence(error: Exception) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
        return f"this needs {error.name}: run pip install '.[{EXTRAS[str(error.name)]}]' in a checkout of cwm-core"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that Python, a GPU or PyTorch's CPU allocator ran out of memory."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "DefaultCPUAllocator" in str(error)


def say(args: argparse.Namespace, text: str) -> None:
    """Print a note on standard error, unless `--quiet` is given."""
    if not args.quiet:
        warn(args, text)


def warn(args: argparse.Namespace, text: str) -> None:
    """Print a warning or an error on standard error."""
    print(f"cwm {args.verb}: {text}", file=sys.stderr)


def write(text: str) -> None:
    """Write to standard output. Characters that its encoding lacks become escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def positive(text: str) -> int:
    """Parse a positive integer, for argparse."""
    return _at_least(1, text)


def not_negative(text: str) -> int:
    """Parse a nonnegative integer, for argparse."""
    return _at_least(0, text)


def loop_budget(text: str) -> tuple[int, int]:
    """Parse FIRST,LAST, for argparse."""
    first, comma, last = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"expected FIRST,LAST, got {text!r}")
    return not_negative(first), positive(last)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Parse a positive number of seconds, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"expected a positive number of seconds, at most {MAX_SECONDS:,}, got {text!r}"
        )
    return value


def share(text: str) -> float:
    """Parse a number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def temperature(text: str) -> float:
    """Parse a sampling temperature, a number of at least 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text!r}")
    return value


def port(text: str) -> int:
    """Parse the number of a TCP port, for argparse; 0 means a free one."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def shows_progress(args: argparse.Namespace) -> bool:
    """Return whether to show progress: standard error is a terminal and `--quiet` is not given."""
    return sys.stderr.isatty() and not args.quiet


@contextmanager
def counter(args: argparse.Namespace, unit: str = "traces") -> Iterator[Callable[[int], None] | None]:
    """Yield a function that shows how many traces (or another unit) are done; None if progress is not shown."""
    if not shows_progress(args):
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
def status_line(args: argparse.Namespace) -> Iterator[Callable[[str], None] | None]:
    """Yield a function that sets a status text, shown with the elapsed time; None if progress is not shown."""
    if not shows_progress(args):
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


MACHINES = ("bubblewrap", "docker", "process")
"""Machines of environments, by the names that `--sandbox` takes."""


def one_of_or_path(*names: str) -> Callable[[str], str]:
    """Return a type of arguments: one of `names`, or an import path of the form `module:name`."""

    def check(text: str) -> str:
        if text in names or ":" in text:
            return text
        expected = ", ".join(map(repr, names))
        raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {expected}, or module:name)")

    return check


def extension(path: str, method: str) -> Any:
    """Return the object that an import path names, or what it returns if it is a class or a function.

    Args:
        path: The path, `module:name`.
        method: Name of a method that the object must have.

    Raises:
        ValueError: There is no such object, or it lacks the method.
    """
    from ..support.imports import import_object

    found = import_object(path)
    made = found() if isinstance(found, type) or (callable(found) and not hasattr(found, method)) else found
    if not hasattr(made, method):
        raise ValueError(f"{path}: expected an object with a method {method!r}, got {type(made).__name__}")
    return made


def machines(kind: str, image: str | None = None) -> Backend:
    """Return the backend of environments that `--sandbox` names.

    Raises:
        SandboxError: This computer cannot run it.
        ValueError: An import path leads to no backend.
    """
    from ..machines import DockerBackend, SandboxBackend
    from ..machines.programs import check_sandbox, installed_packages

    if ":" in kind:
        backend: Backend = extension(kind, "open")
        return backend
    if kind == "docker":
        return DockerBackend(image)
    sandbox = cast("Sandbox", kind)  # `check_sandbox` refuses anything else
    check_sandbox(sandbox)
    return SandboxBackend(sandbox, readable=installed_packages())  # tests want pytest


def record_call(
    recorder: Recorder,
    file: str,
    code: str,
    call: str,
    program_args: Sequence[str] = (),
    *,
    name: str = "__main__",
) -> Trace:
    """Record a call as `record_source` does, with the `sys.argv` and `sys.path` of a script.

    Raises:
        ValueError: The module's body raised.
    """
    try:
        with script_state([file, *program_args], script_folder(file)):
            return recorder.record_source(code, call, name=name, file=file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = f"{file} raised {error!r} before the call, so nothing was recorded"
        if isinstance(error, SystemExit) and name == "__main__":
            message += "; with --as-module, the part under if __name__ == '__main__' does not run"
        raise ValueError(message) from error


def program(file: str, call: str) -> str:
    """Return the source of a program after checking that it and the call compile.

    Raises:
        OSError: The file cannot be read.
        SyntaxError: The file or the call does not compile.
    """
    with tokenize.open(file) as source:
        code = source.read()
    compile(code, file, "exec", dont_inherit=True)
    compile(call, "--call", "eval", dont_inherit=True)
    return code
