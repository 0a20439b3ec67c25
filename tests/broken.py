"""The small repositories, each broken by a change that its tests notice: tasks with their solutions."""

import subprocess
from pathlib import Path

from cwm_core.environments import Task
from small_repositories import TEST_COMMAND, copy_repository

BUGS = {
    "containers": ("containers/heap.py", "if not self._less(at, parent):", "if self._less(at, parent):"),
    "ledger": ("ledger/rows.py", "quoted = True", "quoted = False"),
    "rational": ("rational/number.py", "self.q = q // divisor", "self.q = q"),
    "reckon": ("src/reckon/evaluate.py", "return -evaluate(", "return evaluate("),
    "vending": ("lights.py", "self.left -= seconds", "self.left += seconds"),
    "wordsmith": ("wordsmith/distance.py", "cost = 0 if x == y else 1", "cost = 1 if x == y else 0"),
}


def broken_tasks(folder: Path, names=tuple(BUGS)) -> list[Task]:
    """Tasks over git repositories made under `folder`; test names make it pytest's own business."""
    tasks = []
    for name in names:
        repository = copy_repository(name, folder)
        path, right, wrong = BUGS[name]
        source = (repository / path).read_text()
        assert source.count(right) == 1
        (repository / path).write_text(source.replace(right, wrong))
        patch, solution = (
            subprocess.run(
                ["git", "-C", repository, "diff", *option], capture_output=True, text=True, check=True
            ).stdout
            for option in ((), ("-R",))
        )
        (repository / path).write_text(source)
        tasks.append(
            Task(
                name,
                f"Since the last change tests of {name} fail. Find out why, and repair it.",
                repository,
                patch=patch,
                solution=solution,
                protected=("tests",),
                test_command=f"{TEST_COMMAND} -x -p no:cacheprovider",
            )
        )
    return tasks


def repair_actions(task: Task) -> list[str]:
    """Return the actions of an agent that knows the change: look, edit, test, and submit the diff."""
    path, right, wrong = BUGS[task.name]
    line = next(line for line in (task.folder / path).read_text().splitlines() if right in line)
    broken = line.replace(right, wrong)
    edit = f"{path}\n<<<<<<< SEARCH\n{broken}\n=======\n{line}\n>>>>>>> REPLACE"
    return [
        f"Let me look.\n<tool: bash>\ngrep -n '{wrong}' {path}\n</tool>",
        f"That is wrong.\n<tool: edit>\n{edit}\n</tool>",
        f"<tool: bash>\n{task.test_command} 2>&1 | tail -n 1 | cut -d' ' -f2; git diff > fix.diff\n</tool>",
        "<tool: submit>\nfix.diff\n</tool>",
        "The tests pass again.",
    ]
