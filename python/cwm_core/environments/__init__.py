"""What an agent acts in: a task's repository behind tools, one action a turn, a reward at the end."""

from .environment import Environment, Step, Task, Transition
from .shell import Shell, ShellResult
from .tools import ActionError, Call, parse_action

__all__ = ["ActionError", "Call", "Environment", "Shell", "ShellResult", "Step", "Task", "Transition", "parse_action"]
