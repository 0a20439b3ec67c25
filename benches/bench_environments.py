"""Start a sandbox and a machine, and run a command in a persistent shell, compared with docker and SWE-ReX.

`docker exec` starts a new bash for each command and keeps no state. SWE-ReX runs the shell of its local runtime, in the
same process and without isolation, because its Docker deployment installs an HTTP server in the container with pip,
which needs a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cwm_core import machines
from cwm_core.environments import Task
from cwm_core.machines import DockerBackend, SandboxBackend

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import docker_image
from cwm_core.machines import bubblewrap

COMMAND = "echo hello; cd .; x=1"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "file").write_text("text\n")
    return Task("bench", "", folder)


def backend_of(kind: str) -> DockerBackend | SandboxBackend:
    if kind == "docker":
        return DockerBackend(docker_image.image())
    if kind == "bubblewrap" and (reason := machines.bubblewrap_refusal()):
        pytest.skip(reason)
    return SandboxBackend(kind)


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("kind", ["cwm_core", "cwm_core, process", "bwrap alone", "python alone"])
def test_sandbox_start(benchmark, tmp_path: Path, kind: str) -> None:
    """Run `true` from start to report. The floor is `bwrap` and the interpreter of the supervisor alone."""
    if kind in ("cwm_core", "bwrap alone") and (reason := machines.bubblewrap_refusal()):
        pytest.skip(reason)
    alone = {
        "bwrap alone": [*bubblewrap.command(str(tmp_path), scratch_bytes=1 << 20), "true"],
        "python alone": [bubblewrap.interpreter(), "-I", "-S", "-c", ""],
    }
    benchmark.group = "environment: sandbox start"
    benchmark.extra_info = {"implementation": kind}
    if kind in alone:
        benchmark(subprocess.run, alone[kind], check=True)
    else:
        sandbox = "process" if kind.endswith("process") else "bubblewrap"
        assert benchmark(machines.run, ["true"], folder=tmp_path, sandbox=sandbox).exit_code == 0


@pytest.mark.parametrize("kind", ["cwm_core, bubblewrap", "cwm_core, docker", "docker run"])
def test_machine_start(benchmark, task: Task, kind: str) -> None:
    """Measure from a task to the first answer of a shell, and until everything has ended."""
    benchmark.group = "environment: machine start"
    benchmark.extra_info = {"implementation": kind}
    if kind == "docker run":
        image = docker_image.image()
        benchmark.pedantic(docker, ("run", "--rm", "--network=none", image, "bash", "-c", COMMAND), rounds=10)
        return
    backend = backend_of(kind.rpartition(" ")[2])

    def start() -> None:
        with contextlib.closing(backend.open(task)) as machine:
            assert machine.shell().run(COMMAND, seconds=30).output == b"hello\n"

    benchmark.pedantic(start, rounds=10)


@contextlib.contextmanager
def swe_rex() -> Iterator[Callable[[], object]]:
    pytest.importorskip("swerex", exc_type=ImportError)
    from swerex.runtime.abstract import BashAction, CloseBashSessionRequest, CreateBashSessionRequest
    from swerex.runtime.local import LocalRuntime

    loop, runtime = asyncio.new_event_loop(), LocalRuntime()
    try:
        loop.run_until_complete(runtime.create_session(CreateBashSessionRequest()))
        yield lambda: loop.run_until_complete(runtime.run_in_session(BashAction(command=COMMAND, timeout=30))).output
        loop.run_until_complete(runtime.close_session(CloseBashSessionRequest()))
    finally:
        loop.run_until_complete(runtime.close())
        loop.close()


@contextlib.contextmanager
def docker_exec() -> Iterator[Callable[[], object]]:
    container = docker("run", "-d", "--rm", "--network=none", docker_image.image(), "sleep", "600")
    try:
        yield lambda: docker("exec", container, "bash", "-c", COMMAND)
    finally:
        docker("rm", "-f", container)


@pytest.mark.parametrize("kind", ["cwm_core, bubblewrap", "cwm_core, docker", "docker exec", "SWE-ReX, local"])
def test_shell_round_trip(benchmark, task: Task, kind: str) -> None:
    """Run one short command in a running shell."""
    benchmark.group = "environment: a command in a shell"
    benchmark.extra_info = {"implementation": kind}
    with contextlib.ExitStack() as stack:
        if kind.startswith("cwm_core"):
            machine = stack.enter_context(contextlib.closing(backend_of(kind.rpartition(" ")[2]).open(task)))
            shell = machine.shell()

            def command() -> str:
                return shell.run(COMMAND, seconds=30).output.decode()
        else:
            command = stack.enter_context(swe_rex() if kind.startswith("SWE") else docker_exec())
        said = benchmark(command)
    assert str(said).strip() == "hello"
