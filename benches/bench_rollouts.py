"""Compare rollouts with the minimum that their commands take.

Each rollout repairs a small broken repository: it looks around, writes down the diff, applies it, submits it, and the
repository's tests decide. The floor runs the same commands in plain bash, without a sandbox, over plain copies of the
tree: one for the work, one for the tests. `events` are rollouts; `rollouts an hour` is the mean of all rounds.
"""

from __future__ import annotations

import difflib
import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cwm_core import machines
from cwm_core.environments import (
    ScriptedAgent,
    Task,
    TrajectoryReader,
    rollouts,
    run_rollouts,
    solution_actions,
    summarize,
)
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages

ROLLOUTS = 8
WORKERS = (1, 2, 4)
REPOSITORY, FILE = Path(__file__).parents[1] / "tests" / "repositories" / "vending", "lights.py"
TESTS = "python -m pytest -q -p no:cacheprovider"


@pytest.fixture(scope="module")
def task(quick: bool) -> Task:
    right = (REPOSITORY / FILE).read_text()
    wrong = right.replace("self.left -= seconds", "self.left += seconds")
    patch, solution = diff(right, wrong), diff(wrong, right)
    # Plugins of this environment take most of the time of the tests.
    command = f"PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 {TESTS}" if quick else TESTS
    return Task("vending", "Repair it.", REPOSITORY, patch=patch, solution=solution, test_command=command)


def diff(old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), f"a/{FILE}", f"b/{FILE}")
    return f"diff --git a/{FILE} b/{FILE}\n" + "".join(lines)


def count(benchmark: Any) -> int:
    """Return the number of rollouts per round: few if nothing is measured."""
    return ROLLOUTS if benchmark.enabled else 2


def measure(
    benchmark: Any, run: Callable[[Path], None], workers: int, implementation: str, folders: Iterator[Path]
) -> None:
    benchmark.group = f"rollouts, {workers} at a time"
    benchmark.extra_info |= {"implementation": implementation, "events": count(benchmark)}
    benchmark.pedantic(lambda: run(next(folders)), rounds=3, iterations=1, warmup_rounds=1)
    if benchmark.stats:
        benchmark.extra_info["rollouts an hour"] = round(3600 * count(benchmark) / benchmark.stats.stats.mean)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    return (tmp_path / str(number) for number in itertools.count())


@pytest.mark.parametrize("kind", ["bubblewrap", "process"])
@pytest.mark.parametrize("workers", WORKERS)
def bench_rollouts(benchmark: Any, task: Task, folders: Iterator[Path], workers: int, kind: machines.Sandbox) -> None:
    if kind == "bubblewrap" and machines.bubblewrap_refusal():
        pytest.skip("bubblewrap is not possible here")
    backend = SandboxBackend(kind, readable=installed_packages())
    tasks = [replace(task, name=f"vending-{n}") for n in range(count(benchmark))]

    def run(folder: Path) -> None:
        run_rollouts(tasks, ScriptedAgent(solution_actions), folder, backend=backend, workers=workers)
        assert summarize(TrajectoryReader(folder / rollouts.FILE)).solved == len(tasks)

    name = "cwm_core" if kind == "bubblewrap" else "cwm_core, process"
    measure(benchmark, run, workers, name, folders)


@pytest.mark.parametrize("workers", WORKERS)
def bench_plain_bash(benchmark: Any, task: Task, folders: Iterator[Path], workers: int) -> None:
    def bash(folder: Path, command: str, stdin: str = "") -> None:
        subprocess.run(["bash", "-c", command], cwd=folder, input=stdin, text=True, capture_output=True, check=True)

    def one(folder: Path) -> None:
        work, fresh = folder / "work", folder / "fresh"
        for copy in (work, fresh):
            shutil.copytree(task.folder, copy, symlinks=True)
            bash(copy, "git apply -", task.patch)
        bash(work, "ls")
        bash(work, "cat > solution.diff", task.solution)
        bash(work, "git apply solution.diff && grep '^+++' solution.diff")
        bash(fresh, "git apply -", (work / "solution.diff").read_text())
        bash(fresh, task.test_command)
        shutil.rmtree(folder)

    def run(folder: Path) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, [folder / str(n) for n in range(count(benchmark))]))

    measure(benchmark, run, workers, "plain bash", folders)
