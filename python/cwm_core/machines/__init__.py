"""Running what is not trusted: recorded programs, agents' commands, model output.

Two backends, always an explicit choice, never a silent fall back:

- ``"bubblewrap"`` (the default) isolates: no network, no view of the machine beyond its programs, only ``folder``
  writable, a process namespace that dies as a whole. Refused with `SandboxError` where this machine cannot do it.
- ``"process"`` limits resources and cleans up, and is no isolation: the program may do whatever this user may.
"""

from .bubblewrap import refusal as bubblewrap_refusal
from .bubblewrap import scratch_entries
from .docker import DockerBackend
from .literals import evaluate_literal, literals_equal
from .process import Completed, HeadTail, Limits, Process, Sandbox, SandboxError, remove_tree, run, run_python
from .protocol import Backend, Machine, Workspace
from .sandboxed import SandboxBackend
from .shell import Shell, ShellResult

__all__ = [
    "Backend",
    "Completed",
    "DockerBackend",
    "HeadTail",
    "Limits",
    "Machine",
    "Process",
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
