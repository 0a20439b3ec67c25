"""Serve a recording sandbox that records with a Python trace function, for the corpus benchmarks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]
import oracle  # noqa: E402


class PythonRecorder:
    """Records with `sys.settrace`, `repr` and `json`; the trace is its text form."""

    def __init__(self, **_: Any) -> None:
        self.last: PythonRecorder | None = None

    def record_source(self, code: str, call: str) -> PythonRecorder:
        return self.keep(oracle.record_source(code, call))

    def record_call(self, module: ModuleType, call: str) -> PythonRecorder:
        return self.keep(oracle.record_call(module, call))

    def keep(self, frames: list[oracle.OracleFrame]) -> PythonRecorder:
        self.text = "".join(map(oracle.frame_text, frames))
        self.last = self
        return self

    def to_bytes(self) -> bytes:
        return self.text.encode("utf-8", "surrogatepass")


def main() -> None:
    sys.path.append(sys.argv[1])
    from cwm_core.corpus._sandbox_server import SandboxServer

    sys.path.remove(sys.argv[1])
    server = SandboxServer(json.loads(sys.argv[2]))
    server.recorder = PythonRecorder
    PythonRecorder().record_source("def f(x):\n    return [x]\n", "f(1)")
    server.serve()


if __name__ == "__main__":
    main()
