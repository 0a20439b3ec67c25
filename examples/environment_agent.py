"""Roll out an agent of your own on a task, and print its reward.

From the command line, the same agent runs with `cwm agent tasks.jsonl --agent environment_agent:SedAgent -o rollouts`
in this folder.
"""

import sys
import tempfile
from pathlib import Path

from cwm_core.environments import Task, TrajectoryReader, run_rollouts
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages

TASK = Task(
    "sums",
    "add() subtracts. Repair it.",
    Path(__file__).resolve().parent / "repository",
    fail_to_pass=("test_sums.py::test_add",),
)


class SedAgent:
    """Replaces a minus by a plus, whatever the task is."""

    settings = {"agent": "sed"}

    def start(self, task, seed, budget):
        fix = "<tool: bash>\nsed -i 's/a - b/a + b/' sums.py; git diff > fix.diff\n</tool>"
        replies = iter([fix, "<tool: submit>\nfix.diff\n</tool>", "The sum is repaired."])
        return lambda messages: next(replies)

    def interrupt(self):
        pass


def main(sandbox="bubblewrap"):
    with tempfile.TemporaryDirectory() as folder:
        backend = SandboxBackend(sandbox, readable=installed_packages())
        run_rollouts([TASK], SedAgent(), folder, backend=backend, workers=1)
        [trajectory] = TrajectoryReader(Path(folder) / "trajectories.jsonl")
        print(trajectory.reward, trajectory.reason)


if __name__ == "__main__":
    main(*sys.argv[1:])
