"""Run untrusted code: recorded programs, commands of agents, model output.

There are two kinds of sandbox. The choice is explicit, and there is no silent fallback.

- `"bubblewrap"` (the default) isolates: no network, no files of the host but its programs, only `folder` is writable,
  and all processes end with their namespace. It raises `SandboxError` on a host that does not support it.
- `"process"` limits resources and cleans up, without isolation: the program can do anything that this user can.

A `Backend` opens a `Machine` for a repository, either in a sandbox (`SandboxBackend`) or in a Docker container
(`DockerBackend`).
"""

from .bubblewrap import refusal as bubblewrap_refusal
from .bubblewrap import scratch_entries
from .docker import DockerBackend
from .literals import evaluate_literal, literals_equal
from .process import (
    Completed,
    ExceededLimit,
    HeadTail,
    Limits,
    Process,
    ProgramEnd,
    Sandbox,
    SandboxError,
    remove_tree,
    run,
    run_python,
)
from .protocol import Backend, Machine, Workspace
from .sandboxed import SandboxBackend
from .shell import Shell, ShellResult

__all__ = [
    "Backend",
    "Completed",
    "DockerBackend",
    "ExceededLimit",
    "HeadTail",
    "Limits",
    "Machine",
    "Process",
    "ProgramEnd",
    "Sandbox",
    "SandboxBackend",
    "SandboxError",
    "Shell",
    "ShellResult",
    "Workspace",
    "bubblewrap_refusal",
    "evaluate_literal",
    "literals_equal",
    "remove_tree",
    "run",
    "run_python",
    "scratch_entries",
]
