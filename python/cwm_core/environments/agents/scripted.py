"""Agents whose actions are known beforehand: for tests, and to see that tasks can be solved."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..tasks import Task
from .protocol import Budget, EndReason, Generate, Message, OutOfBudget, Reply

Script = Sequence[str] | Mapping[str, Sequence[str]] | Callable[[Task], Sequence[str]]


class ScriptedAgent:
    """Replies with the actions of a script, regardless of the observations."""

    def __init__(self, script: Script, *, name: str | None = None) -> None:
        """Create an agent that replies from a script.

        Args:
            script: A list of actions, a mapping from task names to such lists, or a function from a task to a list.
            name: Name of the script in the settings. Defaults to a digest of the actions, or the function's name.
        """
        self._script = script
        self._name = name or _name(script)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Agent.settings`."""
        return {"agent": "script", "script": self._name}

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """See `Agent.start`. Raise ValueError for a task without actions."""
        script = self._script
        if isinstance(script, Mapping):
            if task.name not in script:
                raise ValueError(f"the script has no actions for the task {task.name}")
            actions = script[task.name]
        else:
            actions = script(task) if callable(script) else script
        if isinstance(actions, str):
            raise ValueError("a script must be a list of actions, got a string")
        rest = iter(actions)

        def generate(messages: Sequence[Message]) -> Reply:
            for action in rest:
                return Reply(action)
            raise OutOfBudget(EndReason.SCRIPT)

        return generate

    def interrupt(self) -> None:
        """See `Agent.interrupt`."""


def solution_actions(task: Task) -> list[str]:
    """Return actions that list the repository, write the known solution to a file, apply it, and submit it.

    Raises:
        ValueError: The task has no known solution.
    """
    if not task.solution:
        raise ValueError(f"task {task.name} has no known solution")
    diff = task.solution.removesuffix("\n")
    return [
        "Let me look at the repository.\n<tool: bash>\nls\n</tool>",
        f"I write down the change.\n<tool: create>\nsolution.diff\n{diff}\n</tool>",
        "Now I apply it and look at what changed.\n<tool: bash>\ngit apply solution.diff && grep '^+++' solution.diff\n"
        "</tool>",
        "<tool: submit>\nsolution.diff\n</tool>",
        "The change is submitted.",
    ]


def _name(script: Script) -> str:
    if callable(script):
        return getattr(script, "__qualname__", type(script).__qualname__)
    text = json.dumps(script if isinstance(script, Mapping) else list(script), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
