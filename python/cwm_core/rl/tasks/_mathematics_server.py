"""The process in a sandbox that compares final answers: it forks a child for each answer, which may hang or crash.

A request on standard input is a line of JSON: the reference, the answer, and the limit in seconds. The reply on
standard output is one byte: `1` if they are equal, `0` if not, `?` if the comparison did not end. At the start, `r`.
"""

import json
import os
import select
import signal
import sys
from typing import Any


def equal(reference: str, answer: str) -> bool:
    """Return whether an answer in LaTeX has the value of a reference."""
    from math_verify import parse, verify
    from math_verify.parser import LatexExtractionConfig

    # The limits of the library use SIGALRM, which a computation in C does not heed; the parent has its own.
    options: dict[str, Any] = {"parsing_timeout": None, "raise_on_error": False}
    only_boxed = {"extraction_config": [LatexExtractionConfig(boxed_match_priority=0)], "fallback_mode": "no_fallback"}
    gold = parse(f"\\boxed{{{reference}}}", **only_boxed, **options) or parse(reference, **options)
    target = parse(f"\\boxed{{{answer}}}", **only_boxed, **options)
    return bool(gold and target and verify(gold, target, timeout_seconds=None, raise_on_error=False))


def compare(request: dict[str, Any]) -> bytes:
    """Compare in a child process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, b"1" if equal(request["reference"], request["answer"]) else b"0")
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], request["seconds"])
    verdict = os.read(read, 1) if ready else b""
    os.close(read)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return verdict or b"?"


def main() -> None:
    """Serve requests until standard input ends."""
    sys.path += sys.argv[1:]
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    equal("\\frac{1}{2}", "0.5")  # imports and fills caches, which children share
    os.write(answers, b"r")
    for line in sys.stdin.buffer:
        os.write(answers, compare(json.loads(line)))


if __name__ == "__main__":
    main()
