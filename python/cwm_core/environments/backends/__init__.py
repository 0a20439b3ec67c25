"""Where tasks are worked on: a sandbox over a copied work tree, or a container, behind one protocol.

A `Backend` opens a `Machine` for a task: the task's repository, its patch applied, on which commands run.
"""

from .docker import DockerBackend
from .protocol import Backend, Machine
from .sandboxed import SandboxBackend

__all__ = ["Backend", "DockerBackend", "Machine", "SandboxBackend"]
