"""The system message of an agent."""

import inspect
from collections.abc import Iterable

from ...tokenizer.chat import REASONING_SYSTEM_PROMPT
from ..tools import Tool, form_of, tools_by_name

_PURPOSES = {
    "bash": "Runs commands in a shell that keeps its working directory and variables from call to call.",
    "edit": "Replaces lines of a file. The lines to find must occur in it exactly once, as they are.",
    "create": "Writes a new file into a folder that exists.",
    "submit": "Hands in a diff of all changes, a file as `git diff` writes it. Submitting again replaces it.",
}


def system_prompt(*, reasoning: bool = False, tools: Iterable[Tool] = ()) -> str:
    """Return the system message, which describes the tools and the course of a rollout.

    Args:
        reasoning: Begin with the sentence that turns reasoning on.
        tools: Tools in addition to the built-in ones, described by their docstrings.
    """
    purposes = _PURPOSES | {name: inspect.cleandoc(tool.__doc__ or "") for name, tool in tools_by_name(tools).items()}
    described = "\n\n".join(f"{purpose}\n{form_of(name)}" for name, purpose in purposes.items())
    parts = [
        "You work on a repository with tools; its root is the shell's first working directory. Call exactly one tool "
        "in a message, at its end, with each tag on a line of its own:",
        described,
        "The paths of edit, create and submit count from the repository's root, wherever the shell is. Tests and "
        "configuration stay as they are, whatever you submit.",
        "Each call is answered with what it printed and what is left of your budget. When the work is done, submit it, "
        "then end with a message that calls no tool.",
    ]
    return "\n\n".join([REASONING_SYSTEM_PROMPT, *parts] if reasoning else parts)
