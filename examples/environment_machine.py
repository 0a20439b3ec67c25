"""Run environments on a machine backend of your own: here, one that logs each machine that it opens.

A backend is an object with a method `open(task)` that returns a machine. `cwm_core.machines.protocol` defines the
methods of a machine. From the command line, in this folder:

    cwm agent tasks.jsonl --sandbox environment_machine:LoggingBackend ...
"""

import os
import sys

from cwm_core.environments import Environment
from cwm_core.machines import SandboxBackend
from cwm_core.machines.programs import installed_packages
from environment_agent import TASK


class LoggingBackend:
    """Opens sandboxes and logs their folders."""

    def __init__(self, sandbox="bubblewrap"):
        self.sandboxes = SandboxBackend(os.environ.get("SANDBOX", sandbox), readable=installed_packages())

    def open(self, task):
        machine = self.sandboxes.open(task)
        print(f"opened a machine for {task.name}", file=sys.stderr)
        return machine


def main(sandbox="bubblewrap"):
    with Environment(LoggingBackend(sandbox)) as environment:
        environment.start(TASK)
        print(environment.step("<tool: bash>\nls\n</tool>").observation)


if __name__ == "__main__":
    main(*sys.argv[1:])
