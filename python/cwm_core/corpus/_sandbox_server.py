"""What runs in a corpus sandbox: a fresh forked child for each order on standard input; see `workers.py`.

Started as ``python -s -S -P _worker.py SETTINGS``: isolated but for PYTHONHASHSEED, and without what `site` brings,
which differs from one environment to the next and doubles the cost of a fork. SETTINGS is JSON. Orders are framed by
four bytes of length before their JSON, answers by two such lengths before their JSON and their trace. A list of orders
shares a child as far as that gets. This process itself runs nothing of an order, unless told to ``preload`` a module:
it then belongs to that module's samples.

A child shares the sandbox with this process and may end it, which the other side sees; it cannot read or change it
(not dumpable, so not to be traced), and nothing that a child leaves behind outlives its order.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import linecache
import os
import resource
import select
import signal
import site
import struct
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

LENGTH = struct.Struct("<I")
SHARED_FOLDERS = ("/tmp", "/dev/shm")
IPC_LISTS = ("/proc/sysvipc/msg", "/proc/sysvipc/sem", "/proc/sysvipc/shm")
PROGRAM = "main.py"
LIMITED = (resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE)
PR_SET_DUMPABLE = 4  # linux/prctl.h
WATCH_SECONDS = 0.5  # after which a child's end is asked for again
NO_RESULT = "ended without a result"
MAX_WORD, MAX_EFFECTS = 100, 20  # of what a program says about itself


class SandboxServer:
    """Obeys orders until its input ends."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Keep input and output from children's reach, and import what every order needs."""
        self.settings = settings
        self.orders, self.answers = os.dup(0), os.dup(1)
        self.null = os.open(os.devnull, os.O_RDWR)
        for standard in range(2):
            os.dup2(self.null, standard)
        # Ending every other process is right in a sandbox's own process namespace, and nowhere else.
        self.isolated = os.readlink("/proc/self/ns/pid") != settings["pid_namespace"]
        self.prctl = ctypes.CDLL(None).prctl
        self.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        # Inherited by children, for which this would take as long as the fork.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        sys.path += settings["paths"]
        for name in ("cwm_core", "cwm_core.trace", "cwm_core.corpus", "cwm_core.corpus.filters"):
            package = types.ModuleType(name)  # without its __init__, which would import NumPy
            package.__path__ = [os.path.join(os.path.dirname(os.path.dirname(__file__)), *name.split(".")[1:])]
            sys.modules[name] = package
        # It asks to be seeded anew after each fork, which takes longer than the fork; no program that draws from it
        # unseeded gives two recordings that are equal.
        register, os.register_at_fork = os.register_at_fork, lambda **_: None
        importlib.import_module("random")
        os.register_at_fork = register
        with showing_modules_by_name():
            self.recorder = importlib.import_module("cwm_core.trace.recorder").Recorder
        self.effects = importlib.import_module("cwm_core.corpus.effects").Effects
        site.setquit()  # of what `site` brings, programs use exit()
        sys.argv, sys.stdin = [""], open(0, encoding="utf-8", errors="surrogatepass", closefd=False)  # noqa: SIM115
        self.recorder().record_source("def f(x):\n    return [x]\n", "f(1)").to_bytes()  # what is made at first use
        gc.collect()
        gc.freeze()  # pages that children share stay shared

    def serve(self) -> None:
        """Say that orders are taken, and answer each in turn."""
        self.answer(failed("ready"), b"")
        with os.fdopen(self.orders, "rb", closefd=False) as orders:
            while head := orders.read(LENGTH.size):
                message = json.loads(orders.read(LENGTH.unpack(head)[0]))
                if isinstance(message, list):
                    self.obey(message)
                else:
                    self.answer(self.preload(message["preload"]), b"")

    def obey(self, orders: list[dict[str, Any]]) -> None:
        """RunResult orders that share a child; those that it did not get to share the next one."""
        while orders:
            started = time.monotonic()
            answers = self.child(orders)
            seconds = (time.monotonic() - started) / len(answers)
            for header, trace in answers:
                self.answer(header | {"seconds": seconds}, trace)
            orders = orders[len(answers) :]

    def answer(self, header: dict[str, Any], trace: bytes) -> None:
        """Give one answer."""
        text = json.dumps(header).encode()
        write(self.answers, LENGTH.pack(len(text)) + LENGTH.pack(len(trace)) + text + trace)

    def preload(self, name: str) -> dict[str, Any]:
        """Import a module that later orders call into, and read its source, which recording them needs."""
        try:
            file = importlib.import_module(name).__file__ or ""
            linecache.getlines(file)
        except BaseException as error:
            return failed(f"it raised {type(error).__name__}")
        # The paths come after the standard library, which everything else here needs.
        paths = tuple(os.path.join(path, "") for path in self.settings["paths"])
        if paths and not file.startswith(paths) and not os.path.realpath(file).startswith(paths):
            return failed("another module has its name")
        gc.collect()
        gc.freeze()
        return {"reason": None, "effects": []}

    def child(self, orders: list[dict[str, Any]]) -> list[tuple[dict[str, Any], bytes]]:
        """Obey orders in a fresh process, and leave nothing of them: the answers of the first, at least one.

        The limits are those of the first order, for all that the process does. An order that it ends in has no answer
        unless it is the first: what came before it may be the cause.
        """
        read, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            become_samples(self, orders, write_end)
        os.close(write_end)
        most = orders[0]["answer_bytes"]
        said, status = watch(child, read, orders[0]["seconds"], most)
        os.close(read)
        self.end_all(child, ended=status is not None)
        reason = failure(status, len(said) > most)
        if reason is None or len(orders) > 1:
            answers = parse_answers(said, len(orders))
            if answers:
                return answers
        return [(failed(reason or NO_RESULT), b"")]

    def end_all(self, child: int, *, ended: bool) -> None:
        """Kill whatever the child left running, and remove whatever it left lying about.

        What cannot be undone ends this process: the next one starts in a fresh sandbox.
        """
        with contextlib.suppress(ProcessLookupError):
            if self.isolated:
                os.kill(-1, signal.SIGKILL)  # all but this process and process 1
            else:
                os.killpg(child, signal.SIGKILL)
        if not ended:
            os.waitpid(child, 0)
        os.chdir("/")
        for folder in SHARED_FOLDERS if self.isolated else (self.settings["folder"],):
            wipe(folder)
        for path, target in self.settings["entries"]:
            restore(path, target)
        if self.isolated and any(has_entries(path) for path in IPC_LISTS):
            raise RuntimeError("System V IPC objects were left")


def become_samples(worker: SandboxServer, orders: list[dict[str, Any]], answers: int) -> None:
    """In the child: obey the orders, write an answer after each, and end at once."""
    try:
        os.setsid()
        os.dup2(worker.null, 2)
        os.close(worker.orders)
        os.close(worker.answers)
        worker.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
        for kind, wanted in zip(LIMITED, orders[0]["limits"], strict=True):
            hard = resource.getrlimit(kind)[1]
            value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(kind, (value, value))
        work = "/tmp/work" if worker.isolated else os.path.join(worker.settings["folder"], "work")
        os.mkdir(work)
        os.chdir(work)
        process = os.getpid()
        for order in orders:
            data = obey(worker, order)
            if os.getpid() != process:  # a copy that the program forked
                break
            write(answers, LENGTH.pack(len(data)) + data)
    finally:
        os._exit(0)


def obey(worker: SandboxServer, order: dict[str, Any]) -> bytes:
    """Record what the order names: the header's JSON, a newline, and the stored trace."""
    recorder = worker.recorder(**order["options"])
    reason, effects = None, None
    if order["stdin"]:
        give_input(order["stdin"])
    try:
        own = prepare(order)
        if order["effects"] != "none":
            effects = worker.effects(clocks=order["effects"] == "all", own=own)
        with effects or contextlib.nullcontext():
            record(recorder, order)
    except SyntaxError:
        reason = "does not compile"
    except BaseException:
        reason = "raised before the call"
    header = {"reason": None, "effects": sorted(effects.names) if effects else []}
    if recorder.last is None:
        return json.dumps(header | {"reason": reason or "no trace"}).encode() + b"\n"
    return json.dumps(header).encode() + b"\n" + recorder.last.to_bytes()


def prepare(order: dict[str, Any]) -> list[str]:
    """Read and write what recording needs, before effects are watched: the files of the program's own frames."""
    own = [importlib.import_module("cwm_core.trace")._SOURCE_NAME]
    if order["call"] is None:
        with open(PROGRAM, "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(order["code"])
        own.append(os.path.abspath(PROGRAM))
    elif order["module"] is not None:
        own.append(importlib.import_module(order["module"]).__file__ or "")
    linecache.getlines(own[-1])
    return own


def record(recorder: Any, order: dict[str, Any]) -> None:
    """Record a call in a source, in a module, or a whole program."""
    if order["call"] is None:
        recorder.record_file(PROGRAM)
    elif order["module"] is not None:
        recorder.record_call(sys.modules[order["module"]], order["call"])
    else:
        recorder.record_source(order["code"], order["call"])


@contextlib.contextmanager
def showing_modules_by_name() -> Iterator[None]:
    """Import the recorder so that the text of a module is without its path, which belongs to this machine.

    The recorder writes modules by itself if their specs are of the type that it finds when it is imported.
    """
    machinery = importlib.import_module("importlib.machinery")
    importlib._bootstrap._module_repr = lambda module: f"<module {vars(module).get('__name__', '?')!r}>"
    ordinary, machinery.ModuleSpec = machinery.ModuleSpec, type("ModuleSpec", (), {})
    try:
        yield
    finally:
        machinery.ModuleSpec = ordinary


def give_input(text: str) -> None:
    """Make the text standard input, for descriptors and `sys.stdin` alike."""
    source = os.memfd_create("stdin")
    write(source, text.encode("utf-8", "surrogatepass"))
    os.lseek(source, 0, os.SEEK_SET)
    os.dup2(source, 0)
    os.close(source)


def watch(child: int, read: int, seconds: float, most: int) -> tuple[bytes, int | None]:
    """What the child says, up to one byte more than `most`, and how it ended (as `waitstatus_to_exitcode`).

    None for a child that has not ended in time. What it started may hold the pipe open: that is not waited for.
    """
    said = bytearray()
    deadline = time.monotonic() + seconds
    ended = os.pidfd_open(child)
    try:
        os.set_blocking(read, False)
        poll = select.poll()
        poll.register(read, select.POLLIN)
        poll.register(ended, select.POLLIN)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(said), None
            ready = {fd for fd, _ in poll.poll(min(left, WATCH_SECONDS) * 1000)}
            if read in ready and not take(read, said, most):
                poll.unregister(read)
            if ended in ready:
                take(read, said, most)
                return bytes(said), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(ended)


def take(read: int, said: bytearray, most: int) -> bool:
    """Read what there is, keeping `most` + 1 bytes; False at the end of the stream."""
    try:
        while chunk := os.read(read, 1 << 20):
            said += chunk[: most + 1 - len(said)]
    except BlockingIOError:
        return True
    return False


def failure(status: int | None, too_large: bool) -> str | None:
    """What is wrong with how a child ended (as of `watch`), or with how much it said."""
    if status is None:
        return "limit: seconds"
    if status < 0:
        return f"ended by signal {-status}"
    if status > 0:
        return f"ended by exit code {status}"
    return "answer too large" if too_large else None


def parse_answers(said: bytes, most: int) -> list[tuple[dict[str, Any], bytes]]:
    """The answers of which all was said, up to one that is none: of that, what came before it may be the cause."""
    answers: list[tuple[dict[str, Any], bytes]] = []
    start = 0
    while len(answers) < most and len(said) >= start + LENGTH.size:
        end = start + LENGTH.size + LENGTH.unpack_from(said, start)[0]
        if len(said) < end:
            break
        answer = parse_answer(said[start + LENGTH.size : end])
        if answers and answer[0]["reason"] == NO_RESULT:
            break
        answers.append(answer)
        start = end
    return answers


def parse_answer(said: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, in known form, and the trace of an answer; a program can forge what it says of itself."""
    line, _, trace = said.partition(b"\n")
    try:
        header = json.loads(line)
        reason, effects = header["reason"], [str(name)[:MAX_WORD] for name in header["effects"][:MAX_EFFECTS]]
        if reason is None and trace:
            return {"reason": None, "effects": effects}, trace
        return failed(str(reason)[:MAX_WORD]), b""
    except (ValueError, KeyError, TypeError, RecursionError):
        return failed(NO_RESULT), b""


def failed(reason: str) -> dict[str, Any]:
    """The header of an answer without a trace."""
    return {"reason": reason, "effects": []}


def wipe(folder: str) -> None:
    """Remove everything in a folder."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            try:
                os.rmdir(path)
            except OSError:  # it holds something
                importlib.import_module("shutil").rmtree(path)
        else:
            os.unlink(path)


def restore(path: str, target: str | None) -> None:
    """Make a link, or an empty folder, that leads to what the sandbox shows; see `sandbox.scratch_entries`."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if target is None:
        os.makedirs(path, exist_ok=True)
    else:
        os.symlink(target, path)


def has_entries(path: str) -> bool:
    """Whether a list of /proc has more than its heading."""
    try:
        with open(path) as file:
            return len(file.readlines()) > 1
    except OSError:
        return False


def write(fd: int, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


if __name__ == "__main__":
    SandboxServer(json.loads(sys.argv[1])).serve()
