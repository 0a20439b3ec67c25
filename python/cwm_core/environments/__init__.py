"""What an agent acts in: a task's repository behind tools, one action a turn, a reward at the end."""

from .backends import Backend, DockerBackend, Machine, SandboxBackend
from .environment import Environment, Step, Transition
from .profile import CWM, CWM_TRAINING, DEFAULT, PROFILES, Profile
from .rewards import Reward, judge
from .shell import Shell, ShellResult
from .tasks import Task, read_tasks, write_tasks
from .tools import ActionError, Call, parse_action

__all__ = [
    "CWM",
    "CWM_TRAINING",
    "DEFAULT",
    "PROFILES",
    "ActionError",
    "Backend",
    "Call",
    "DockerBackend",
    "Environment",
    "Machine",
    "Profile",
    "Reward",
    "SandboxBackend",
    "Shell",
    "ShellResult",
    "Step",
    "Task",
    "Transition",
    "judge",
    "parse_action",
    "read_tasks",
    "write_tasks",
]
