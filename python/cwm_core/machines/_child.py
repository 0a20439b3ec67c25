"""Record or evaluate a program inside the sandbox: `python -I _child.py < ORDER`; see `programs.py`.

ORDER is JSON. The answer, a tag of one byte and its data, goes to the original standard output; the output of the
program is discarded. The program shares this process and can forge the answer, which is therefore a statement about
that program only.
"""

import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER, FAILED = b"A", b"F"


def record(order: dict[str, Any]) -> bytes:
    """Return the stored trace of the call."""
    # Skip the package's __init__, which imports NumPy: that takes time, and a path that the sandbox does not show.
    for name in ("cwm_core", "cwm_core.trace"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(__file__).parents[1].joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    from cwm_core.trace.recorder import Recorder

    sys.path += order["paths"]
    recorder = Recorder(max_frames=order["max_frames"], max_bytes=order["max_bytes"])
    try:
        recorder.record_source(order["code"], order["call"], file=order["file"])
    except BaseException:
        if recorder.last is None:
            raise
    assert recorder.last is not None  # `record_source` sets it
    return recorder.last.to_bytes()


def evaluate(order: dict[str, Any]) -> bytes:
    """Return the `repr` of the call's value."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(order["code"], "<program>", "exec", dont_inherit=True), names)
    call = compile(order["call"], "<call>", "eval", dont_inherit=True)
    value = eval(call, names, {"nan": math.nan, "inf": math.inf})  # `repr` writes them, but they are not literals
    return repr(value).encode("utf-8", "surrogatepass")


def main() -> None:
    """Carry out the order, then exit immediately without waiting for threads or exit handlers of the program."""
    order = json.load(sys.stdin)
    answer, null, process = os.dup(1), os.open(os.devnull, os.O_RDWR), os.getpid()
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.argv = [""]
    work: Callable[[dict[str, Any]], bytes] = {"record": record, "evaluate": evaluate}[order["do"]]
    try:
        tag, data = ANSWER, work(order)
    except SyntaxError:
        tag, data = FAILED, b"does not compile"
    except BaseException:
        tag, data = FAILED, b"raised"
    if os.getpid() == process:  # not in a process that the program forked
        left = memoryview(tag + data)
        while left:
            left = left[os.write(answer, left) :]
    os._exit(0)


if __name__ == "__main__":
    main()
