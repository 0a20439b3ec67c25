"""Run as the trusted first process of a sandbox: start the program, enforce its limits, and end all of its processes.

`main` runs in a separate interpreter with only the standard library. Under bubblewrap it is process 1, which nothing
inside can signal. Imports take most of the time that a sandbox needs to start, so this module imports no Python module
that is not loaded already, and uses `_signal` and `_ctypes` instead of the modules on top of them.

The descriptor `control` receives orders of one byte each. Closing it ends the run, so the program cannot outlive its
caller. The descriptor `report` receives a line with the program's process id, and a line with a tuple of exit code,
signal, exceeded limit, and seconds, as a Python literal.

Limits on all processes together are polled, because the kernel's limits do not fit: RLIMIT_NPROC counts all processes
of the user and exempts root, and RLIMIT_DATA applies to one process. A burst can exceed the limits for about one
`INTERVAL`. RLIMIT_NPROC bounds it to `BURST` times the limit. At the limit itself, a program would end by the error of
`fork` before the supervisor sees that it has too many processes, and the limit would count as the program's failure.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # typeshed describes only `signal`
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
BURST = 16  # a fork bomb takes longer than `INTERVAL` to multiply by this
INTERRUPT, KILL_OTHERS = b"i", b"k"  # orders on the control pipe
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 4, 36  # linux/prctl.h


class Ignored:
    """Equivalent of `contextlib.suppress`."""

    def __init__(self, *exceptions: type[BaseException]) -> None:
        """Set the exceptions to ignore."""
        self._exceptions = exceptions

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        """Return whether to ignore the exception."""
        return kind is not None and issubclass(kind, self._exceptions)


def adopt_orphans() -> None:
    """Become the parent of orphaned descendants, and prevent them from tracing or reading this process."""
    with Ignored(ImportError, OSError):  # without prctl, outside Linux, only the process group is ended
        from _ctypes import call_function, dlopen, dlsym

        prctl = dlsym(dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # typeshed omits None, this process
        call_function(prctl, (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        call_function(prctl, (PR_SET_DUMPABLE, 0, 0, 0, 0))


def descendants() -> Iterator[tuple[int, int]]:
    """Yield (process id, number of threads) of every descendant, before looking up its children."""
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
    """Return the resident memory of a process in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def free_bytes() -> int:
    """Return the free space of the folder's file system in bytes."""
    found = os.statvfs(".")
    return found.f_bfree * found.f_frsize


def folder_bytes() -> int:
    """Return the size of the folder in bytes, including deleted files that a process has open."""
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
    """Checks the size of the folder, but reads the folder only if the file system has lost enough free space."""

    def __init__(self, limit: int) -> None:
        """Set the limit, in bytes."""
        self._limit, self._room, self._free = limit, limit, free_bytes()

    def exceeded(self) -> bool:
        """Return whether the folder is larger than the limit."""
        free = free_bytes()
        if self._free - free < self._room:
            return False
        used, self._free = folder_bytes(), free
        self._room = max(self._limit - used, 0)
        return used > self._limit


def exceeded_limit(settings: dict[str, Any], started: float, disk: DiskWatch) -> str | None:
    """Return the name of a limit that the processes together exceed, or None."""
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
    """Return the number of threads of this user (under bubblewrap, in its namespace), as RLIMIT_NPROC counts them."""
    threads = 0
    for pid in filter(str.isdecimal, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with Ignored(OSError):
            if os.stat(f"/proc/{pid}").st_uid == os.getuid():
                threads += len(os.listdir(f"/proc/{pid}/task"))
    return threads


def start(argv: list[str], settings: dict[str, Any]) -> int:
    """Fork and execute the program in a new session, under the limits of each process; return its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        with Ignored(AttributeError):
            os.sched_setscheduler(
                0, os.SCHED_OTHER, os.sched_param(0)
            )  # the supervisor may have real-time priority; see process.py
        for number in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGINT,
        ):  # Python ignores the first two, and exec would keep that
            signal.signal(number, signal.SIG_DFL)
        for limit, value in (
            (resource.RLIMIT_CPU, settings["cpu_seconds"]),
            (resource.RLIMIT_DATA, settings["memory_bytes"]),
            (resource.RLIMIT_FSIZE, settings["file_bytes"]),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, threads_of_user() + BURST * settings["processes"]),
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
    """Reap all ended processes; return the wait status of `child` if it ended, and whether any process is left."""
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
    """Signal a process that may have ended."""
    with Ignored(OSError):
        os.kill(pid, number)


def kill_all(child: int) -> int | None:
    """Kill until no process is left; return the wait status of `child` if it ended here.

    As process 1 of a namespace, one call reaches all processes at once. Elsewhere, a parent is signaled before its
    children are listed, so it cannot fork again, and orphans become children of this process.
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
    """Interrupt all processes, or interrupt `child` and kill all others."""
    for pid, _ in list(descendants()):
        kill(pid, signal.SIGINT if order == INTERRUPT or pid == child else signal.SIGKILL)


def main(settings: dict[str, Any], argv: list[str]) -> None:
    """Run a program until it ends or exceeds a limit, write the report, and end this process.

    `settings` contains the fields of `Limits`, `control`, and `report`.
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
    os._exit(0)  # skip cleanup, because the caller waits
