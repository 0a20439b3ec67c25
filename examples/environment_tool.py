"""Give an agent a tool of your own: `find`, which searches the repository.

From the command line, the tool is added with `cwm agent tasks.jsonl --tool environment_tool:find ...` in this folder.
"""

import shlex
import sys

from cwm_core.environments import Environment, system_prompt
from cwm_core.machines import SandboxBackend
from environment_agent import TASK


def find(machine, content):
    """Finds the lines of Python files that contain a text."""
    if "\n" in content:
        raise ValueError("find takes a single line")
    command = f"grep -rnF --include='*.py' -e {shlex.quote(content)} . | head -n 20"
    found = machine.run(command, seconds=10.0).stdout.decode(errors="replace")
    return found.rstrip() or "Nothing was found."


def main(sandbox="bubblewrap"):
    assert "Finds the lines" in system_prompt(tools=[find])
    with Environment(SandboxBackend(sandbox), tools=[find]) as environment:
        environment.start(TASK)
        print(environment.step("<tool: find>\nreturn a\n</tool>").observation)


if __name__ == "__main__":
    main(*sys.argv[1:])
