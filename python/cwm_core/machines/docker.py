"""Run machines as Docker containers, of any image with bash and the coreutils (GNU or BusyBox).

A container has no network and a read-only base. The repository and /tmp are file systems in memory, whose size limits
disk space with every storage driver. Commands of agents run as an unprivileged user without capabilities.

Process 1 is `INIT`, which runs as root with the capability to signal and no other. It runs as long as its standard
input is open. So when the process that opened the container ends for any reason, the container ends and is removed. If
that process dies before it starts the container, the next `DockerBackend` removes it.
"""

import contextlib
import io
import os
import posixpath
import signal
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from typing import IO, Any, Self

from . import files, process, supervisor
from .docker_engine import Exec, Stream, connect, docker_package, engine_errors, is_dead, owner_label, remove
from .process import GRACE
from .protocol import Workspace, apply_patch, outside_of_repositories
from .sandboxed import LIMITS
from .shell import ARGV, Shell

LABEL = "cwm-core.owner"
USER = 65534  # nobody, in nearly every image
WORKDIR = "/workspace"

# Reads one order per line and answers each with a line. A fork bomb leaves no process ids, so orders start none.
# It also forks faster than one can kill, so `only` stops all processes before it kills some. A killed process exists
# until it is scheduled, so `only` checks again for up to two seconds. Dead processes have state Z or X. $1 is the
# maximum lifetime in seconds.
INIT = r"""
trap '' HUP INT QUIT TERM
while read -r -t "$(($1 - SECONDS))" order rest; do
  pids=
  case $order in
    interrupt) kill -s INT -- -1 ;;
    list) for path in /proc/[0-9]*; do pids+=" ${path#/proc/}"; done ;;
    only)
      until=$((SECONDS + 2)) alive=yes
      while [[ $alive && $SECONDS -le $until ]]; do
        alive=
        kill -s STOP -- -1
        for path in /proc/[0-9]*; do
          case " 1 $rest " in *" ${path#/proc/} "*) continue ;; esac
          kill -s KILL "${path#/proc/}"
          read -r state <"$path/stat" && [[ ${state##*) } != [ZX]* ]] && alive=yes
        done
      done
      kill -s CONT -- -1
      ;;
  esac
  echo "done$pids"
done 2>/dev/null
"""


class DockerBackend:
    """Opens containers of the tasks' images, or of `image` with the tasks' folders copied into them.

    Attributes:
        image: Image for tasks that name none.
        limits: `seconds` limits the lifetime of a container; `processes` and `memory_bytes` limit a container;
            `cpu_seconds` and `file_bytes` limit each process. `disk_bytes` limits the repository and, separately, /tmp;
            both are held in memory, in addition to `memory_bytes`.
        cpus: Processors that a container can use.
    """

    def __init__(
        self,
        image: str | None = None,
        *,
        limits: process.Limits = LIMITS,
        cpus: float = 2.0,
    ) -> None:
        """Connect to the engine at DOCKER_HOST, or of this host, and remove containers whose owner has died.

        Raises:
            SandboxError: The Python package docker (extra `docker`) is not installed, or the engine does not answer.
        """
        self.image, self.limits, self.cpus = image, limits, cpus
        client = connect()
        with engine_errors():
            for container in client.containers(all=True, filters={"label": LABEL}):
                if is_dead(container["Labels"][LABEL]):
                    remove(client, container["Id"])
            client.close()

    def open(self, task: Workspace) -> "DockerMachine":
        """Open a fresh container; see `Backend.open`. The image must be on the engine; it is never pulled."""
        image = task.image or self.image
        if image is None:
            raise ValueError(f"task {task.name} names no image; add one to the task or to DockerBackend")
        if task.folder is None and task.image is None:
            raise ValueError(f"task {task.name} has neither an image nor a folder")
        machine = DockerMachine(self, image, task.workdir)
        try:
            with tempfile.TemporaryFile() as archive:
                if task.folder is None:
                    machine.write_image_tree(archive)
                else:
                    with tarfile.open(fileobj=archive, mode="w") as tree:
                        tree.add(task.folder, ".", filter=_owned)
                machine.put(machine.root, archive)
            apply_patch(machine, task)
        except BaseException:
            machine.close()
            raise
        return machine


class DockerMachine:
    """A container; see `Machine`. Interrupting one of its shells interrupts all of its processes."""

    def __init__(self, backend: DockerBackend, image: str, workdir: str | None) -> None:
        """Start a container with an empty folder `workdir`; None is that of the image, or `WORKDIR`."""
        self._backend, self._image = backend, image
        self._client = connect()
        self._id: str | None = None
        self._init: Stream | None = None
        self.shell_pids: set[int] = set()
        try:
            with engine_errors(image):
                workdir = workdir or self._client.inspect_image(image)["Config"].get("WorkingDir") or WORKDIR
            self.root = posixpath.normpath(workdir)
            if not self.root.startswith("/") or self.root in ("/", "//", "/tmp"):
                raise ValueError(f"the folder {workdir} of image {image} cannot be a repository")
            with engine_errors(image):
                self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        backend, limits, client = self._backend, self._backend.limits, self._client
        host = client.create_host_config(
            auto_remove=True,
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            cap_add=["KILL"],  # for process 1; processes of other users have none
            security_opt=["no-new-privileges"],
            mounts=[self._memory(self.root, "755"), self._memory("/tmp", "1777")],
            pids_limit=limits.processes,
            mem_limit=limits.memory_bytes + 2 * limits.disk_bytes,
            memswap_limit=limits.memory_bytes + 2 * limits.disk_bytes,
            ulimits=[
                {"Name": name, "Soft": bound, "Hard": bound}
                for name, bound in (("cpu", limits.cpu_seconds), ("fsize", limits.file_bytes), ("core", 0))
            ],
            nano_cpus=int(min(backend.cpus, os.cpu_count() or 1) * 1e9),
            log_config={"Type": "none"},
        )
        life = str(int(limits.seconds + GRACE))
        self._id = client.create_container(
            self._image,
            entrypoint=["bash", "-c", INIT, "cwm-init", life],
            command=[],
            user="0:0",
            stdin_open=True,
            detach=False,  # so that standard input closes with the connection
            environment={"HOME": "/tmp", "LANG": "C.UTF-8", **outside_of_repositories(self.root)},
            labels={LABEL: owner_label()},
            working_dir=self.root,
            host_config=host,
        )["Id"]
        self._init = Stream(client.attach_socket(self._id, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}))
        client.start(self._id)

    def _memory(self, target: str, mode: str) -> dict[str, Any]:
        """Return an anonymous volume, removed with the container. Archives cannot be unpacked in a tmpfs mount."""
        options = f"size={self._backend.limits.disk_bytes},uid={USER},gid={USER},mode={mode},nosuid,nodev"
        driver = {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": options}}
        return {"Type": "volume", "Target": target, "VolumeOptions": {"NoCopy": True, "DriverConfig": driver}}

    def put(self, folder: str, archive: IO[bytes]) -> None:
        """Unpack an archive into a writable folder of the container."""
        archive.seek(0)
        with engine_errors():
            self._client.put_archive(self._id, folder, archive)

    def write_image_tree(self, archive: IO[bytes]) -> None:
        """Write the image's folder `root` as an archive of files that the agent owns."""
        client = self._client
        with engine_errors(self._image):
            whole = client.create_container(self._image, command=["true"], labels={LABEL: owner_label()})["Id"]
            try:
                chunks, _ = client.get_archive(whole, self.root + "/.", chunk_size=1 << 20)
                _own(io.BufferedReader(_Chunks(chunks)), archive)
            except docker_package().errors.NotFound:
                raise ValueError(f"image {self._image} has no folder {self.root}") from None
            finally:
                remove(client, whole)

    def shell(self) -> Shell:
        """See `Machine.shell`."""
        return Shell(lambda: _ContainerShell(self), output_bytes=self._backend.limits.output_bytes)

    def run(
        self, command: str, *, stdin: bytes = b"", seconds: float, output_bytes: int | None = None
    ) -> process.Completed:
        """See `Machine.run`. A command that a signal ended has exit code 128 plus the number of the signal."""
        kept = self._backend.limits.output_bytes if output_bytes is None else output_bytes
        stdout, stderr = process.HeadTail(kept), process.HeadTail(kept)
        started = time.monotonic()
        before = self.order("list")
        with contextlib.closing(self.execute(["bash", "-c", command])) as program:
            program.exchange(stdin, stdout.add, stderr.add, seconds=seconds, close_stdin=True)
            exit_code = program.exit_code(started + seconds - time.monotonic())
            self.order(f"only {before}")
            program.exchange(b"", stdout.add, stderr.add, seconds=GRACE)
        return process.Completed(
            exit_code=exit_code,
            signal=signal.SIGKILL if exit_code is None else None,
            stdout=stdout.value(),
            stderr=stderr.value(),
            exceeded=process.ExceededLimit.SECONDS if exit_code is None else None,
            truncated=bool(stdout.left_out or stderr.left_out),
            seconds=time.monotonic() - started,
        )

    def file(self, tool: str, path: str, **arguments: str | None) -> tuple[bool, str]:
        """See `Machine.file`."""
        return files.use(self.run, self.root, tool, path, **arguments)

    def clone(self) -> Self:
        """See `Machine.clone`. /tmp is copied too."""
        other = type(self)(self._backend, self._image, self.root)
        try:
            for folder in (self.root, "/tmp"):
                with tempfile.TemporaryFile() as archive:
                    with engine_errors():
                        archive.writelines(self._client.get_archive(self._id, folder + "/.")[0])
                    other.put(folder, archive)
        except BaseException:
            other.close()
            raise
        return other

    def execute(self, argv: Sequence[str]) -> "Exec":
        """Start a program as the agent's user in `root`."""
        # The program waits for a line, because the client loses output that arrives with the engine's reply.
        waiting = ["bash", "-c", 'read -r && exec "$@"', "cwm", *argv]
        with engine_errors():
            user = f"{USER}:{USER}"
            key = self._client.exec_create(self._id, waiting, stdin=True, user=user, workdir=self.root)["Id"]
            return Exec(self._client, key)

    def order(self, order: str) -> str:
        """Send an order to `INIT` and return its answer. Raise SandboxError if the container has ended."""
        if self._init is None:
            raise process.SandboxError(f"the container of image {self._image} is closed")
        answer = bytearray()
        self._init.exchange(
            f"{order}\n".encode(),
            answer.extend,
            answer.extend,
            seconds=GRACE,
            until=lambda: answer.endswith(b"\n"),
        )
        if not answer.startswith(b"done") or not answer.endswith(b"\n"):
            said = answer.decode(errors="replace").strip() or "it does not answer"
            raise process.SandboxError(f"the container of image {self._image} was lost: {said}")
        return answer.decode().removeprefix("done").strip()

    def is_crowded(self) -> bool:
        """Return whether the container has more than half of the processes that its limit allows."""
        return 2 * len(self.order("list").split()) > self._backend.limits.processes

    def kill_others(self) -> None:
        """Kill all processes except shells and `INIT`."""
        self.order("only " + " ".join(map(str, self.shell_pids)))

    def close(self) -> None:
        """See `Machine.close`."""
        if self._init is not None:
            self._init.close()
            self._init = None
        if self._id is not None:
            with engine_errors():
                remove(self._client, self._id)
            self._id = None
        self._client.close()


class _ContainerShell:
    """A shell in a container; see `ShellProgram`."""

    def __init__(self, machine: DockerMachine) -> None:
        """Start the shell."""
        self._machine, self._started = machine, time.monotonic()
        self._exec = machine.execute(["bash", "-c", 'echo $$ && exec "$@"', "cwm", *ARGV])
        self.exchange, pid, said = self._exec.exchange, bytearray(), bytearray()
        self.exchange(b"", pid.extend, said.extend, seconds=GRACE, until=lambda: pid.endswith(b"\n"))
        if not pid.strip().isdigit():
            self._exec.close()
            reason = (pid + said).decode(errors="replace").strip()
            raise process.SandboxError(f"no shell starts in the container: {reason or 'it does not answer'}")
        self._pid = int(pid)
        machine.shell_pids.add(self._pid)

    @property
    def ended(self) -> bool:
        """See `ShellProgram.ended`."""
        return self._exec.ended

    def order(self, order: bytes) -> None:
        """See `ShellProgram.order`."""
        # Background processes of bash ignore interrupts, so a fork bomb survives them.
        crowded = self._machine.is_crowded()
        self._machine.order("interrupt")
        if order == supervisor.KILL_OTHERS or crowded:
            self._machine.kill_others()

    def outcome(self) -> process.ProgramEnd | None:
        """See `ShellProgram.outcome`. A signal shows as an exit code above 128."""
        code = self._exec.exit_code(GRACE)
        if code is None:
            return None
        return process.ProgramEnd(code, code - 128 if code > 128 else None, None, time.monotonic() - self._started)

    def close(self) -> None:
        """See `ShellProgram.close`."""
        self._machine.shell_pids.discard(self._pid)
        with contextlib.suppress(process.SandboxError):
            self._machine.kill_others()
        self._exec.close()


class _Chunks(io.RawIOBase):
    """Raw stream of chunks of bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._left = iter(chunks), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._left = self._left or next(self._chunks, b"")
        length = min(len(buffer), len(self._left))
        buffer[:length], self._left = self._left[:length], self._left[length:]
        return length


def _owned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return the entry with the agent as its owner, or None unless it is a file, a folder, or a link."""
    if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        return None
    entry.uid = entry.gid = USER
    entry.uname = entry.gname = ""
    entry.mode &= 0o777
    entry.pax_headers = {}
    return entry


def _own(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy an archive, with the agent as the owner of every entry."""
    with tarfile.open(fileobj=source, mode="r|") as old, tarfile.open(fileobj=target, mode="w") as new:
        for entry in old:
            data = old.extractfile(entry) if entry.isreg() else None
            if _owned(entry):
                new.addfile(entry, data)
