"""Survey repositories: find their modules and reliable tests."""

import hashlib
import io
import re
import secrets
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...machines import Backend, Machine
from ..outcomes import READ_SECONDS, TestOutcome, read_file, run_tests
from ..protection import is_test, protected_paths
from ..tasks import Task

LIST = "git ls-files -z '*.py' 2>/dev/null || find . -name '*.py' -type f -print0"


@dataclass(frozen=True)
class Repository:
    """Source code with tests, in `folder` or in the folder `workdir` of a Docker image; see `Task`."""

    name: str
    """Unique name."""
    folder: Path | None = None
    """Folder on this host."""
    image: str | None = None
    """Docker image."""
    workdir: str | None = None
    """Folder in the image."""
    test_command: str = "python -m pytest -q"
    """Command that runs the whole suite with pytest."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin to record in tasks, such as repository, commit, and license."""

    def task(self, name: str, prompt: str = "", **fields: Any) -> Task:
        """Return a task in the repository, judged by the command that surveys it."""
        where = (self.folder, self.image, self.workdir)
        return Task(name, prompt, *where, test_command=self.test_command, test_files=(), **fields)


@dataclass(frozen=True)
class Survey:
    """Result of running a repository's tests twice."""

    reliable: tuple[str, ...]
    """Tests that passed both times."""
    flaky: tuple[str, ...]
    """Tests whose outcomes differed."""
    seconds: float
    """Duration of the slower run, in seconds."""
    protected: tuple[str, ...]
    """Paths that no submission may change."""
    sources: dict[str, bytes]
    """Modules outside of tests, by path."""

    @property
    def digest(self) -> str:
        """Digest of everything that mutations and their outcomes depend on."""
        parts = hashlib.sha256("\n".join(self.reliable).encode(errors="replace"))
        for path, source in sorted(self.sources.items()):
            parts.update(f"\0{path}\0".encode() + hashlib.sha256(source).digest())
        return parts.hexdigest()[:16]


def survey(repository: Repository, backend: Backend, *, seconds: float) -> Survey:
    """Run the suite on two fresh machines with different hash seeds, each for at most `seconds`.

    Raises:
        SandboxError: This host cannot run the machines.
        ValueError: The tests cannot be run, or no test passes twice.
        OSError: The repository's folder cannot be copied.
    """
    runs, longest, files = [], 0.0, set[str]()
    sources: dict[str, bytes] = {}
    for hash_seed in (0, 1):
        machine = backend.open(repository.task(repository.name))
        try:
            sources = sources or read_modules(machine)
            run = run_tests(machine, repository.test_command, seconds=seconds, hash_seed=hash_seed)
        finally:
            machine.close()
        if run.problem:
            said = (run.completed.stdout + run.completed.stderr)[-500:].decode(errors="backslashreplace")
            raise ValueError(f"the tests of {repository.name} cannot be run: {run.problem}: {said}")
        runs.append(run.outcomes)
        files.update(run.files)
        longest = max(longest, run.completed.seconds)
    reliable, flaky = _compare(*runs)
    if not reliable:
        raise ValueError(f"no test of {repository.name} passes")
    code = {path: source for path, source in sources.items() if not is_test(path) and path not in files}
    return Survey(reliable, flaky, longest, protected_paths({*files, *(sources.keys() - code.keys())}), code)


def _compare(one: dict[str, TestOutcome], other: dict[str, TestOutcome]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    both = one.keys() & other.keys()
    reliable = sorted(name for name in both if one[name] == other[name] == TestOutcome.PASSED)
    flaky = sorted((one.keys() ^ other.keys()) | {name for name in both if one[name] != other[name]})
    return tuple(reliable), tuple(flaky)


def read_modules(machine: Machine) -> dict[str, bytes]:
    """Return the Python files that git tracks, or all if there is no git repository, by path.

    Links, and paths with characters that git would quote, are skipped.
    """
    kept = f".cwm-{secrets.token_hex(8)}"
    done = machine.run(f"({LIST}) | tar -c --null -T - -f {kept}", seconds=READ_SECONDS)
    if done.exit_code != 0:
        raise ValueError(f"the modules cannot be read: {done.stderr[-500:].decode(errors='replace')}")
    data = read_file(machine, kept)
    machine.run(f"rm -f {kept}", seconds=READ_SECONDS)
    modules = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = member.name.removeprefix("./")
            if member.isfile() and re.fullmatch(r"[\w./+-]+", path, re.ASCII) and (file := archive.extractfile(member)):
                modules[path] = file.read()
    return dict(sorted(modules.items()))
