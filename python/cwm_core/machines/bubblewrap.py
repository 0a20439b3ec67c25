"""The bubblewrap command line, and whether this machine can run it."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

# An allow list: what is not named does not exist inside. It holds programs and what the loader needs to start them,
# but no home, no /run (a service socket there would answer even over a read-only mount), no keys from /etc.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/etc/alternatives", "/etc/group", "/etc/ld.so.cache",
    "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd",
)  # fmt: skip


def interpreter() -> str:
    """Path of the running interpreter with links (a virtual environment's) resolved."""
    return os.path.realpath(sys.executable)


def command(folder: str | None, *, scratch_bytes: int, readable: Sequence[str] = ()) -> list[str]:
    """Arguments that put what follows them into a sandbox where only `folder` is writable.

    `folder` and `readable` (shown read-only) are absolute and appear under their own paths. /tmp and /dev/shm are
    private, in memory, and hold `scratch_bytes` each; without a `folder` they are all that can be written.
    """
    # /proc read-only: settings like core_pattern go by user id alone, and root without privileges is still root there.
    shown = [*SYSTEM, sys.base_prefix, sys.prefix, *readable]
    size = ["--size", str(scratch_bytes), "--tmpfs"]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--as-pid-1", "--cap-drop", "ALL",
        "--proc", "/proc", "--remount-ro", "/proc",
        "--dev", "/dev", *size, "/dev/shm", "--remount-ro", "/dev", *size, "/tmp",
        *(argument for path in shown for argument in ("--ro-bind-try", path, path)),
        *(("--bind", folder, folder) if folder else ()), "--remount-ro", "/", "--chdir", folder or "/tmp", "--",
    ]  # fmt: skip


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
