"""Build the command line of bubblewrap, and check that it runs on this host."""

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

# An allow list of programs and the files that the loader needs to start them. Nothing else exists inside: no home, no
# keys from /etc, and no /run, where sockets of services answer even on a read-only mount.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/etc/alternatives", "/etc/group", "/etc/ld.so.cache",
    "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd", "/etc/protocols", "/etc/services",
)  # fmt: skip
SCRATCH = ("/tmp", "/dev/shm")
"""Folders that are private to the sandbox. At the start, they contain only links to paths that are shown there."""
_SHOWN = "/shown"  # mount point of paths that lie below a scratch folder on the host
_HOST_NAME = "sandbox"  # as in `hosts`, so that it resolves; hides the name of the host
_HOSTS = str(Path(__file__).with_name("hosts"))
_MOST_LINKS = 40  # limit of the kernel


def interpreter() -> str:
    """Return the path of the running interpreter, with the links of a virtual environment resolved."""
    return os.path.realpath(sys.executable)


@dataclass
class Mounts:
    """Paths that a sandbox shows in addition to the system: mounts, and the links and folders that lead to them.

    A path resolves inside exactly as on the host: through the same links and the folders that a `..` leaves. A path
    below a scratch folder is mounted elsewhere and linked, so that a program that deletes its scratch folder removes a
    link and does not walk through an environment.
    """

    mounts: dict[str, str] = field(default_factory=dict)
    """Paths on the host, by their paths inside the sandbox."""
    links: dict[str, str] = field(default_factory=dict)
    """Targets of links, by the links' paths."""
    folders: set[str] = field(default_factory=set)
    """Empty folders that must exist so that paths with `..` resolve."""

    @classmethod
    def of(cls, folder: str | None, readable: Sequence[str]) -> Self:
        """Return the layout that shows this interpreter, its environment, and `readable`.

        `folder` is the writable folder, which is mounted over everything else.
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
        # Paths below a mount exist already.
        mounted = (*SYSTEM, *layout.mounts.values())
        layout.links = {
            path: to for path, to in layout.links.items() if to in layout.mounts or not _below(path, mounted)
        }
        layout.folders = {path for path in layout.folders if path != "/" and not _below(path, mounted)}
        return layout

    def arguments(self) -> list[str]:
        """Return the arguments of bubblewrap that create the layout."""
        mounts = (argument for inside, path in self.mounts.items() for argument in ("--ro-bind-try", path, inside))
        folders = (argument for path in sorted(self.folders) for argument in ("--dir", path))
        links = (argument for path, to in self.links.items() for argument in ("--symlink", to, path))
        return [*mounts, *folders, *links]

    def _resolved(self, path: str) -> str:
        """Return a path with links and `..` resolved, and record the links and folders on the way."""
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
    """Return the start of a command line that runs a program in a sandbox where only `folder` is writable.

    Args:
        folder: An absolute, resolved path, which is the same inside. None: only /tmp and /dev/shm are writable.
        scratch_bytes: Size of /tmp and of /dev/shm, each a private file system in memory, in bytes.
        readable: Paths to show read-only, under the same paths.
    """
    # /proc read-only: settings like core_pattern go by user id alone, and root without privileges is still root there.
    size = ["--size", str(scratch_bytes), "--tmpfs"]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--cap-drop", "ALL",
        "--hostname", _HOST_NAME, "--proc", "/proc", "--remount-ro", "/proc",
        "--dev", "/dev", *size, "/dev/shm", "--remount-ro", "/dev", *size, "/tmp",
        *(argument for path in SYSTEM for argument in ("--ro-bind-try", path, path)),
        "--ro-bind", _HOSTS, "/etc/hosts", *Mounts.of(folder, _absolute(readable)).arguments(),
        *(("--bind", folder, folder) if folder else ()), "--remount-ro", "/", "--chdir", folder or "/tmp", "--",
    ]  # fmt: skip


def scratch_entries(readable: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return the initial entries of /tmp and /dev/shm in a sandbox without a folder, as (path, target of the link).

    The target is None for an empty folder. Restore these entries after emptying the folders for the next program.
    """
    layout = Mounts.of(None, _absolute(readable))
    entries = [*layout.links.items(), *((path, None) for path in sorted(layout.folders))]
    return [(path, to) for path, to in entries if _below(path, SCRATCH) and path not in SCRATCH]


def _absolute(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return absolute paths with links kept, because inside they lead through the same links."""
    return [os.path.join(os.getcwd(), path) for path in paths]


def _below(path: str, folders: Iterable[str]) -> bool:
    """Return whether a resolved path is one of the resolved `folders` or lies in one of them."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


@functools.cache
def refusal() -> str | None:
    """Return why this host cannot run bubblewrap sandboxes, or None if it can. The result is cached."""
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
