"""Agents whose actions are known beforehand: for tests, and to see that tasks can be solved."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..tasks import Task
from .protocol import Budget, Generate, Message, OutOfBudget, Reply

Script = Sequence[str] | Mapping[str, Sequence[str]] | Callable[[Task], Sequence[str]]


class ScriptedAgent:
    """Says what a script says, whatever is answered."""

    def __init__(self, script: Script, *, name: str | None = None) -> None:
        """Take the actions of every rollout: a list; lists by tasks' names; or a function of the task.

        `name` stands for the script in the settings; without it, a digest of a list's actions or a function's name.
        """
        self._script = script
        self._name = name or _name(script)

    @property
    def settings(self) -> dict[str, Any]:
        """See `Agent.settings`."""
        return {"agent": "script", "script": self._name}

    def start(self, task: Task, seed: int, budget: Budget) -> Generate:
        """See `Agent.start`. Raises ValueError for a task that the script does not know."""
        script = self._script
        if isinstance(script, Mapping):
            if task.name not in script:
                raise ValueError(f"the script has no actions for the task {task.name}")
            actions = script[task.name]
        else:
            actions = script(task) if callable(script) else script
        if isinstance(actions, str):
            raise ValueError("a script is a list of actions, not a single text")
        rest = iter(actions)

        def generate(messages: Sequence[Message]) -> Reply:
            for action in rest:
                return Reply(action)
            raise OutOfBudget("script")

        return generate

    def interrupt(self) -> None:
        """See `Agent.interrupt`."""


def solution_actions(task: Task) -> list[str]:
    """Look around, write down the diff that is known to solve the task, and submit it.

    Raises ValueError for a task without a solution.
    """
    if not task.solution:
        raise ValueError(f"task {task.name} has no solution to play")
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
