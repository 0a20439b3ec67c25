"""The bubblewrap command line, and whether this machine can run it."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# An allow list: what is not named does not exist inside. It holds programs and what the loader needs to start them,
# but no home, no /run (a service socket there would answer even over a read-only mount), no keys from /etc.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/etc/alternatives", "/etc/group", "/etc/ld.so.cache",
    "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd", "/etc/protocols", "/etc/services",
)  # fmt: skip
SCRATCH = ("/tmp", "/dev/shm")
"""Folders that are private to the sandbox and empty when it starts, but for the links to what is shown there."""
_SHOWN = "/shown"  # holds what lies below a scratch folder outside
_HOST_NAME = "sandbox"  # the one in `hosts`: programs see no name of this machine, and the name resolves
_HOSTS = str(Path(__file__).with_name("hosts"))
_MOST_LINKS = 40  # the kernel's own limit


def interpreter() -> str:
    """Path of the running interpreter with links (a virtual environment's) resolved."""
    return os.path.realpath(sys.executable)


@dataclass
class Layout:
    """What a sandbox shows besides the system: which paths are mounted where, and what leads to them.

    A path is found inside as the kernel finds it outside: through the same links, and through the folders that a `..`
    leaves again. What lies below a scratch folder is mounted elsewhere and linked from there, so that a program that
    deletes its scratch folder removes a link and does not walk through an environment.
    """

    mounts: dict[str, str] = field(default_factory=dict)
    """By path inside, the path outside."""
    links: dict[str, str] = field(default_factory=dict)
    """By path, what the link there says."""
    folders: set[str] = field(default_factory=set)
    """Empty folders that must exist for a path with `..` to resolve."""

    @classmethod
    def of(cls, folder: str | None, readable: Sequence[str]) -> Self:
        """Return the layout that shows this interpreter, its environment, and `readable`.

        `folder` is the one that is mounted writable, over everything else.
        """
        layout = cls()
        prefixes = (sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)
        found = {layout._resolved(path) for path in (*prefixes, sys.executable, *readable)}
        for real in sorted(found):
            if _below(real, (*SYSTEM, *layout.mounts.values())):
                continue
            if _below(real, SCRATCH) and not (folder is not None and _below(folder, (real,))):
                inside = f"{_SHOWN}/{len(layout.mounts)}"
                layout.links[real] = inside
            else:
                inside = real
            layout.mounts[inside] = real
        # What lies in a mounted path is there already.
        mounted = (*SYSTEM, *layout.mounts.values())
        layout.links = {
            path: to for path, to in layout.links.items() if to in layout.mounts or not _below(path, mounted)
        }
        layout.folders = {path for path in layout.folders if path != "/" and not _below(path, mounted)}
        return layout

    def arguments(self) -> list[str]:
        """Return the arguments of bubblewrap that make it."""
        mounts = (argument for inside, path in self.mounts.items() for argument in ("--ro-bind-try", path, inside))
        folders = (argument for path in sorted(self.folders) for argument in ("--dir", path))
        links = (argument for path, to in self.links.items() for argument in ("--symlink", to, path))
        return [*mounts, *folders, *links]

    def _resolved(self, path: str) -> str:
        """Return an absolute path without links and `..`, and note those that lead there."""
        at, pending, left = "/", path.split("/")[::-1], _MOST_LINKS
        while pending:
            part = pending.pop()
            if part == "..":
                self.folders.add(at)
                at = os.path.dirname(at)
            elif part not in ("", "."):
                at = os.path.join(at, part)
                if left and os.path.islink(at):
                    left -= 1
                    to = self.links[at] = os.readlink(at)
                    at = "/" if os.path.isabs(to) else os.path.dirname(at)
                    pending += to.split("/")[::-1]
        return at


def command(folder: str | None, *, scratch_bytes: int, readable: Iterable[str | os.PathLike[str]] = ()) -> list[str]:
    """Arguments that put what follows them into a sandbox where only `folder` is writable.

    `folder`, which is absolute and resolved, and `readable` (shown read-only) appear under their own paths. /tmp and
    /dev/shm are private, in memory, and hold `scratch_bytes` each; without a `folder` they are all that can be written.
    """
    # /proc read-only: settings like core_pattern go by user id alone, and root without privileges is still root there.
    size = ["--size", str(scratch_bytes), "--tmpfs"]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--cap-drop", "ALL",
        "--hostname", _HOST_NAME, "--proc", "/proc", "--remount-ro", "/proc",
        "--dev", "/dev", *size, "/dev/shm", "--remount-ro", "/dev", *size, "/tmp",
        *(argument for path in SYSTEM for argument in ("--ro-bind-try", path, path)),
        "--ro-bind", _HOSTS, "/etc/hosts", *Layout.of(folder, _absolute(readable)).arguments(),
        *(("--bind", folder, folder) if folder else ()), "--remount-ro", "/", "--chdir", folder or "/tmp", "--",
    ]  # fmt: skip


def scratch_entries(readable: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return what a sandbox without a folder has in /tmp and /dev/shm when it starts: (path, what a link says).

    For an empty folder the latter is None. Who empties these folders for the next program has to restore the entries.
    """
    layout = Layout.of(None, _absolute(readable))
    entries = [*layout.links.items(), *((path, None) for path in sorted(layout.folders))]
    return [(path, to) for path, to in entries if _below(path, SCRATCH) and path not in SCRATCH]


def _absolute(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the paths from the root on, not resolved: inside, they lead through the same links."""
    return [os.path.join(os.getcwd(), path) for path in paths]


def _below(path: str, folders: Iterable[str]) -> bool:
    """Return whether a path is one of `folders` or lies in one; both are resolved."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


@functools.cache
def refusal() -> str | None:
    """Why this machine cannot run bubblewrap sandboxes, or None if it can. Tried once per process."""
    if shutil.which("bwrap") is None:
        return "bwrap is not on PATH (install bubblewrap 0.8 or later)"
    with tempfile.TemporaryDirectory(prefix="cwm-") as folder:
        probe = [*command(os.path.realpath(folder), scratch_bytes=1 << 20), interpreter(), "-I", "-S", "-c", ""]
        try:
            done = subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            return "bwrap did not start a program within 10 s"
    if done.returncode != 0:
        return f"bwrap cannot start a program here: {done.stderr.decode(errors='replace').strip()}"
    return None
