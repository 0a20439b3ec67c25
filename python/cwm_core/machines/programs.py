"""Recording and evaluating programs that are not trusted: in a sandbox, a fresh process each."""

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
"""What a program may use, unless a caller says otherwise."""

# Of a recording, in the program's process and unpacked in this one.
_MAX_TRACE_BYTES = 64 << 20
# Of what comes out of the sandbox.
_MAX_ANSWER_BYTES = 16 << 20
_MAX_VALUE_BYTES = 1 << 20

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What came of running a program: a value, or the reason why there is none, in a few fixed words."""

    value: Value | None
    reason: str | None = None


def installed_packages() -> list[str]:
    """The folders of packages that this process imports from: for programs that may import what is installed here.

    Among them the one with this package, wherever it lies: pytest imports its plugin.
    """
    folders = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    return [path for path in [*folders, str(Path(__file__).parents[2])] if Path(path).is_dir()]


def check_sandbox(sandbox: Sandbox) -> None:
    """Raise SandboxError, with the reason, where this machine cannot run programs in that sandbox."""
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
    """The trace of `record_source(code, call, file=file)`, recorded in a sandbox; what the program prints goes nowhere.

    The program can import from the folders `paths`, which the sandbox can read, and from the standard library.

    A trace cut at a limit of the recorder is a value, too: see its `truncated`. Reasons why there is none: the code
    does not compile, the module's body raised, the program ended its process, a limit of the sandbox, or an answer that
    is not a trace of this program. Never raises for what the program does.
    """
    order = {"do": "record", "code": code, "call": call, "max_frames": max_frames, "max_bytes": _MAX_TRACE_BYTES}
    order |= {"paths": list(paths), "file": file and os.path.abspath(file)}
    answer = _run(order, replace(limits, output_bytes=_MAX_ANSWER_BYTES), sandbox)
    if answer.value is None:
        return Outcome(None, "raised before the call" if answer.reason == "raised" else answer.reason)
    # The length that the header of a stored trace claims is all that `from_bytes` would unpack.
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
    """The `repr` of the expression `call` in the module `code`, run in a sandbox. Never raises for what they do."""
    order = {"do": "evaluate", "code": code, "call": call}
    answer = _run(order, replace(limits, output_bytes=_MAX_VALUE_BYTES), sandbox)
    if answer.value is None:
        return Outcome(None, answer.reason)
    try:
        return Outcome(answer.value.decode("utf-8", "surrogatepass"))
    except UnicodeDecodeError:
        return Outcome(None, "no whole answer")


def evaluate_with_arguments(code: str, arguments: str, **options: Any) -> Outcome[str]:
    """The `repr` of `f(ARGUMENTS)` in the module `code`, for arguments that a model wrote; options of `evaluate_call`.

    What they are is worked out in one sandbox and must be Python literals by value; the program is called in another.
    So an answer is data when the program runs, and cannot change what the program or the comparison do.
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
    """The tree of one Python expression, which nothing runs; None where the text is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the parser, about "\d" and the like
            return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def in_parallel(work: Callable[[Item], Value], items: Iterable[Item]) -> list[Value]:
    """`work` of each item, by one thread a processor: what runs are other processes."""
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
