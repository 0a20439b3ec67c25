"""Record and evaluate untrusted programs, each in a fresh sandboxed process."""

from __future__ import annotations

import ast
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..trace import Trace, source_context
from . import _child
from .literals import evaluate_literal
from .process import Limits, Sandbox, SandboxError, run

DEFAULT_LIMITS = Limits(seconds=10.0, cpu_seconds=10, memory_bytes=1 << 30, processes=32, file_bytes=1 << 20)
"""Default limits of a program."""

# Size of a trace, both in the program's process and unpacked in this one.
_MAX_TRACE_BYTES = 64 << 20
# Sizes of answers of the sandbox.
_MAX_ANSWER_BYTES = 16 << 20
_MAX_VALUE_BYTES = 1 << 20

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """Result of running a program: a value, or the reason for its absence in a few fixed words."""

    value: Value | None
    reason: str | None = None


def installed_packages() -> list[str]:
    """Return the folders from which this process imports installed packages, so that sandboxed programs can too.

    They include the folder of this package, whose plugin pytest imports.
    """
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in [*folders, str(Path(__file__).parents[2])] if Path(path).is_dir()]


def check_sandbox(sandbox: Sandbox) -> None:
    """Raise SandboxError with the reason if this host cannot run the sandbox."""
    run(["true"], sandbox=sandbox)


def record_program(
    code: str,
    call: str,
    *,
    max_frames: int,
    limits: Limits = DEFAULT_LIMITS,
    sandbox: Sandbox = "bubblewrap",
    paths: Sequence[str] = (),
    file: str | None = None,
) -> Outcome[Trace]:
    """Record `record_source(code, call, file=file)` in a sandbox and return the trace.

    The output of the program is discarded. The program can import from the standard library and `paths`. A trace that a
    limit of the recorder cut is returned too; see its `truncated`. Errors in the program raise no exception
    here.

    Args:
        code: Source of the module.
        call: The expression to record.
        max_frames: Maximum number of frames to record.
        limits: Limits of the program.
        sandbox: The kind of sandbox.
        paths: Folders to import from, shown read-only.
        file: Path of the module.

    Returns:
        The trace, or the reason for its absence: the code does not compile, the module's body raised, the program ended
        its process, it exceeded a limit of the sandbox, or the answer is not a trace of this program.
    """
    order = {"do": "record", "code": code, "call": call, "max_frames": max_frames, "max_bytes": _MAX_TRACE_BYTES}
    order |= {"paths": list(paths), "file": file and os.path.abspath(file)}
    answer = _run(order, replace(limits, output_bytes=_MAX_ANSWER_BYTES), sandbox)
    if answer.value is None:
        return Outcome(None, "raised before the call" if answer.reason == "raised" else answer.reason)
    # `from_bytes` unpacks no more than the length in the header of a stored trace.
    if int.from_bytes(answer.value[12:20], "little") > 2 * _MAX_TRACE_BYTES:
        return Outcome(None, "trace too large")
    try:
        trace = Trace.from_bytes(answer.value)
    except ValueError:
        return Outcome(None, "no whole trace")
    if len(trace) == 0 or trace.context != source_context(code, call):
        return Outcome(None, "no whole trace")
    return Outcome(trace)


def evaluate_call(
    code: str, call: str, *, limits: Limits = DEFAULT_LIMITS, sandbox: Sandbox = "bubblewrap"
) -> Outcome[str]:
    """Evaluate `call` in the module `code` in a sandbox and return its `repr`. Failures of the program do not raise."""
    order = {"do": "evaluate", "code": code, "call": call}
    answer = _run(order, replace(limits, output_bytes=_MAX_VALUE_BYTES), sandbox)
    if answer.value is None:
        return Outcome(None, answer.reason)
    try:
        return Outcome(answer.value.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return Outcome(None, "no whole answer")


def evaluate_with_arguments(code: str, arguments: str, **options: Any) -> Outcome[str]:
    """Return the `repr` of `f(ARGUMENTS)` in the module `code`, for arguments that a model wrote.

    The arguments are evaluated in one sandbox, and their values must be Python literals. The program is called in
    another. So the arguments are data when the program runs and cannot change the program or the comparison.

    Args:
        code: Source of the module, which defines `f`.
        arguments: The arguments, without parentheses.
        **options: Options of `evaluate_call`.
    """
    call = f"f({arguments})"
    tree = parse_expression(call)
    if not isinstance(tree, ast.Call) or ast.get_source_segment(call, tree) != call or not _names_f(tree):
        return Outcome(None, "not arguments")
    if not all(_is_literal(node) for node in [*tree.args, *(keyword.value for keyword in tree.keywords)]):
        values = evaluate_call(code, f"(lambda *a, **k: (a, k))({arguments})", **options)
        if values.value is None:
            return values
        call = f"(lambda values: f(*values[0], **values[1]))({values.value})"
        try:
            pair = evaluate_literal(values.value)
        except ValueError:
            return Outcome(None, "not literals")
        if not isinstance(pair, tuple) or [type(part) for part in pair] != [tuple, dict]:
            return Outcome(None, "not literals")
    return evaluate_call(code, call, **options)


def parse_expression(text: str) -> ast.expr | None:
    """Parse a Python expression without running it; return None if the text is not an expression."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns about invalid escapes such as "\d"
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def in_parallel(work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """Return `work(item)` for each item, using one thread per CPU. Suits work that mostly waits for other processes."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _names_f(tree: ast.Call) -> bool:
    return isinstance(tree.func, ast.Name) and tree.func.id == "f"


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        return False
    return True


def _run(order: dict[str, Any], limits: Limits, sandbox: Sandbox) -> Outcome[bytes]:
    try:
        done = run(
            [sys.executable, "-I", _child.__file__],
            stdin=json.dumps(order).encode(),
            limits=limits,
            sandbox=sandbox,
            readable=[str(Path(_child.__file__).parents[1]), *order.get("paths", ())],
        )
    except SandboxError:
        return Outcome(None, "ended its sandbox")
    reason = None
    if done.exceeded:
        reason = f"limit: {done.exceeded}"
    elif done.signal is not None:
        reason = f"ended by signal {done.signal}"
    elif done.exit_code != 0:
        reason = f"ended by exit code {done.exit_code}"
    elif done.truncated:
        reason = "answer too large"
    elif done.stdout[:1] == _child.FAILED and done.stdout[1:] in (b"does not compile", b"raised"):
        reason = done.stdout[1:].decode()
    elif done.stdout[:1] != _child.ANSWER:
        reason = "ended without a result"
    return Outcome(None, reason) if reason else Outcome(done.stdout[1:])
