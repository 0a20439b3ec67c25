"""Judge submissions by a reward of your own: the tests decide, and a long diff costs a part of the reward.

From the command line, use it with `cwm agent tasks.jsonl --reward environment_reward:short_and_right ...` in this
folder.
"""

import dataclasses
import sys

from cwm_core.environments import judge, make_diff
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from environment_agent import TASK


def short_and_right(task, diff, backend, *, seconds):
    """Return the reward of the tests, less 0.01 for each line of the diff."""
    reward = judge(task, diff, backend, seconds=seconds)
    lines = len((diff or b"").splitlines())
    return dataclasses.replace(reward, value=max(reward.value - 0.01 * lines, 0.0))


def main(sandbox="bubblewrap"):
    source = (TASK.folder / "sums.py").read_bytes()
    diff = make_diff("sums.py", source, source.replace(b"a - b", b"a + b")).encode()
    backend = SandboxBackend(sandbox, readable=installed_packages())
    reward = short_and_right(TASK, diff, backend, seconds=60.0)
    print(f"{reward.value:.2f} {reward.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
