"""The trusted first process of a sandbox: starts the program, watches its limits, ends all that it started.

`main` runs in an interpreter of its own (as process 1 under bubblewrap, where nothing inside can signal it), which has
the standard library alone. What it imports is most of the time that a sandbox takes to start: so nothing that is
written in Python and not loaded already, and `_signal` and `_ctypes` instead of the modules over them.

`control` is a descriptor for orders from outside, one byte each; closing it ends the run, so the program cannot outlive
its caller. `report` gets the program's process id as a line, then one line of exit code, signal, exceeded limit and
seconds, each a Python literal.

Limits on all processes together are watched, because the kernel's own do not fit: RLIMIT_NPROC (set too) counts every
process of the user and spares root, and RLIMIT_DATA is one process's. A burst can pass them for about one `INTERVAL`.
"""

from __future__ import annotations

import _signal as signal
import os
import resource
import select
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

INTERVAL = 0.02  # seconds
INTERRUPT, KILL_OTHERS = b"i", b"k"  # orders on the control pipe
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # linux/prctl.h


class Ignored:
    """`contextlib.suppress`."""

    def __init__(self, *exceptions: type[BaseException]) -> None:
        """Name what is to be ignored."""
        self._exceptions = exceptions

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Whether to go on."""
        return kind is not None and issubclass(kind, self._exceptions)


def adopt_orphans() -> None:
    """Become the parent of every orphaned descendant, and closed to being traced or read by them."""
    with Ignored(ImportError, OSError):  # no prctl outside Linux: there only the process group is ended
        from _ctypes import call_function, dlopen, dlsym

        prctl = dlsym(dlopen(None, 0), "prctl")
        call_function(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        call_function(prctl, (PR_SET_DUMPABLE, 0, 0, 0, 0))


def descendants() -> Iterator[tuple[int, int]]:
    """(process id, number of threads) of every process below this one, each before its own children are looked up."""
    pending = [os.getpid()]
    while pending:
        pid = pending.pop()
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        if pid != os.getpid():
            yield pid, len(threads)
        for thread in threads:
            with Ignored(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                pending += map(int, file.read().split())


def resident_bytes(pid: int) -> int:
    """Memory that a process holds now; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def free_bytes() -> int:
    """Free space of the file system that the folder is on."""
    found = os.statvfs(".")
    return found.f_bfree * found.f_frsize


def folder_bytes() -> int:
    """Space that the folder takes, with that of deleted files which a process has open."""
    blocks, pending, device = {}, ["."], os.stat(".").st_dev
    while pending:
        with Ignored(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                blocks[found.st_ino] = found.st_blocks
                if stat.S_ISDIR(found.st_mode):
                    pending.append(entry.path)
    for pid, _ in descendants():
        with Ignored(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                found = entry.stat()
                if found.st_dev == device and not found.st_nlink:
                    blocks[found.st_ino] = found.st_blocks
    return 512 * sum(blocks.values())


class DiskWatch:
    """Whether the folder holds too much; it is read only when the file system has lost what it may still grow by."""

    def __init__(self, limit: int) -> None:
        """Begin; `limit` is in bytes."""
        self._limit, self._room, self._free = limit, limit, free_bytes()

    def exceeded(self) -> bool:
        """Whether the folder takes more than the limit."""
        free = free_bytes()
        if self._free - free < self._room:
            return False
        used, self._free = folder_bytes(), free
        self._room = max(self._limit - used, 0)
        return used > self._limit


def exceeded_limit(settings: dict[str, Any], started: float, disk: DiskWatch) -> str | None:
    """Name of the limit that the processes together are over, if any."""
    if time.monotonic() - started > settings["seconds"]:
        return "seconds"
    if disk.exceeded():
        return "disk_bytes"
    threads = memory = 0
    for pid, count in descendants():
        threads += count
        memory += resident_bytes(pid)
        if threads > settings["processes"]:
            return "processes"
        if memory > settings["memory_bytes"]:
            return "memory_bytes"
    return None


def threads_of_user() -> int:
    """Number of threads that this user runs, as RLIMIT_NPROC counts them (under bubblewrap: in its user namespace)."""
    threads = 0
    for pid in filter(str.isdecimal, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with Ignored(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                threads += len(os.listdir(f"/proc/{pid}/task"))
    return threads


def start(argv: list[str], settings: dict[str, Any]) -> int:
    """Fork and execute the program in a session of its own, under its per-process limits."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        with Ignored(AttributeError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # the supervisor may be urgent, see process.py
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # Python ignores the first two; exec keeps that
            signal.signal(number, signal.SIG_DFL)
        for limit, value in (
            (resource.RLIMIT_CPU, settings["cpu_seconds"]),
            (resource.RLIMIT_DATA, settings["memory_bytes"]),
            (resource.RLIMIT_FSIZE, settings["file_bytes"]),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, threads_of_user() + settings["processes"]),
        ):
            hard = resource.getrlimit(limit)[1]
            allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(limit, (allowed, allowed))
        os.execvp(argv[0], argv)
    except BaseException as error:
        os.write(2, f"sandbox: cannot run {argv[0]!r}: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(127)


def reap(child: int) -> tuple[int | None, bool]:
    """Collect every ended process; the wait status of `child` if it was among them, and whether any process is left."""
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if pid == 0:
            return status, True
        if pid == child:
            status = ended


def kill(pid: int, number: int) -> None:
    """Signal a process that may be gone."""
    with Ignored(OSError):
        os.kill(pid, number)


def kill_all(child: int) -> int | None:
    """Kill until no process is left; the wait status of `child` if it ended here.

    As process 1 of a namespace one call reaches all at once. Elsewhere a parent gets its signal before its children
    are listed and forks no more after it, and orphans become children of this process.
    """
    status = None
    left = True
    while left:
        kill(-1 if os.getpid() == 1 else -child, signal.SIGKILL)
        for pid, _ in descendants():
            kill(pid, signal.SIGKILL)
        ended, left = reap(child)
        status = ended if ended is not None else status
        if left:
            time.sleep(0.001)
    return status


def obey(order: bytes, child: int) -> None:
    """Interrupt everything, or interrupt `child` and kill everything else."""
    for pid, _ in list(descendants()):
        kill(pid, signal.SIGINT if order == INTERRUPT or pid == child else signal.SIGKILL)


def main(settings: dict[str, Any], argv: list[str]) -> None:
    """Run a program to its end or to a limit, report, and end this process.

    `settings` are the fields of `Limits`, `control` and `report`.
    """
    control, report = settings["control"], settings["report"]
    os.set_inheritable(control, False)
    os.set_inheritable(report, False)
    adopt_orphans()
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    disk, started = DiskWatch(settings["disk_bytes"]), time.monotonic()
    child = start(argv, settings)
    os.write(report, b"%d\n" % child)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    status = exceeded = None
    while status is None and exceeded is None:
        ready, _, _ = select.select([control, wake_read], [], [], INTERVAL)
        if wake_read in ready:
            os.read(wake_read, 4096)
        if control in ready:
            order = os.read(control, 1)
            if order not in (INTERRUPT, KILL_OTHERS):
                break
            obey(order, child)
        status, _ = reap(child)
        exceeded = exceeded_limit(settings, started, disk) if status is None else None
    ended = kill_all(child)
    code = os.waitstatus_to_exitcode(status if status is not None else ended or 0)
    exit_code, number = (code, None) if code >= 0 else (None, -code)
    os.write(report, f"{(exit_code, number, exceeded, time.monotonic() - started)}\n".encode())
    os._exit(0)  # at once: the caller waits for it
