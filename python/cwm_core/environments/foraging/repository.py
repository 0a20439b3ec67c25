"""A repository to make tasks from: its modules, its tests, and which of them can be relied upon."""

import hashlib
import io
import re
import secrets
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...machines import Backend, Machine
from ..outcomes import READ_SECONDS, Outcome, read_file, run_tests
from ..protection import is_test, protected_paths
from ..tasks import Task

LIST = "git ls-files -z '*.py' 2>/dev/null || find . -name '*.py' -type f -print0"


@dataclass(frozen=True)
class Repository:
    """Source code with tests, in `folder` or at `workdir` of a Docker image; see `Task` for both.

    `test_command` is pytest's for the whole suite; `provenance` (repository, commit, licence) goes into tasks.
    """

    name: str
    folder: Path | None = None
    image: str | None = None
    workdir: str | None = None
    test_command: str = "python -m pytest -q"
    provenance: dict[str, Any] = field(default_factory=dict)

    def task(self, name: str, prompt: str = "", **fields: Any) -> Task:
        """Return a task in it, judged by the command that surveys it, as it is."""
        where = (self.folder, self.image, self.workdir)
        return Task(name, prompt, *where, test_command=self.test_command, test_files=(), **fields)


@dataclass(frozen=True)
class Survey:
    """What was found out about a repository by running its tests twice.

    `reliable` are the tests that passed both times, `flaky` those whose outcomes differed; `seconds` is how long the
    slower run took, `sources` the modules outside of tests by path.
    """

    reliable: tuple[str, ...]
    flaky: tuple[str, ...]
    seconds: float
    protected: tuple[str, ...]
    sources: dict[str, bytes]

    @property
    def digest(self) -> str:
        """Of all that mutations and their outcomes depend on."""
        parts = hashlib.sha256("\n".join(self.reliable).encode(errors="replace"))
        for path, source in sorted(self.sources.items()):
            parts.update(f"\0{path}\0".encode() + hashlib.sha256(source).digest())
        return parts.hexdigest()[:16]


def survey(repository: Repository, backend: Backend, *, seconds: float) -> Survey:
    """Run the suite in two fresh machines, with different hash seeds, each for at most `seconds`.

    Raises ValueError for a suite of which no test passes twice, and as `Backend.open`.
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


def _compare(one: dict[str, Outcome], other: dict[str, Outcome]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    both = one.keys() & other.keys()
    reliable = sorted(name for name in both if one[name] == other[name] == "passed")
    flaky = sorted((one.keys() ^ other.keys()) | {name for name in both if one[name] != other[name]})
    return tuple(reliable), tuple(flaky)


def read_modules(machine: Machine) -> dict[str, bytes]:
    """The Python files of a machine's repository that git tracks, or all where there is no git repository, by path.

    Links, and paths with characters that git would quote, are left out.
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
