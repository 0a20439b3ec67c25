"""What runs in the sandbox beside an untrusted program: `python -I _child.py < ORDER`; see `programs.py`.

ORDER is JSON. The answer, a tag of one byte and its data, goes to what was standard output when this began; what the
program writes to its own goes nowhere. The program shares this process and can forge the answer: it only says
something about itself.
"""

import json
import math
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

ANSWER, FAILED = b"A", b"F"


def record(order: dict) -> bytes:
    """The stored trace of the call."""
    # The package without its __init__, which would import NumPy: neither time nor a path in the sandbox is spent on it.
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
    return recorder.last.to_bytes()


def evaluate(order: dict) -> bytes:
    """The `repr` of the call's value."""
    names: dict = {"__name__": "__main__"}
    exec(compile(order["code"], "<program>", "exec", dont_inherit=True), names)
    call = compile(order["call"], "<call>", "eval", dont_inherit=True)
    value = eval(call, names, {"nan": math.nan, "inf": math.inf})  # which `repr` writes and no literal spells
    return repr(value).encode("utf-8", "surrogatepass")


def main() -> None:
    """Obey the order and end at once, whatever threads and exit handlers the program leaves."""
    order = json.load(sys.stdin)
    answer, null, process = os.dup(1), os.open(os.devnull, os.O_RDWR), os.getpid()
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.argv = [""]
    work: Callable[[dict], bytes] = {"record": record, "evaluate": evaluate}[order["do"]]
    try:
        tag, data = ANSWER, work(order)
    except SyntaxError:
        tag, data = FAILED, b"does not compile"
    except BaseException:
        tag, data = FAILED, b"raised"
    if os.getpid() == process:  # not in a copy that the program forked
        left = memoryview(tag + data)
        while left:
            left = left[os.write(answer, left) :]
    os._exit(0)


if __name__ == "__main__":
    main()
