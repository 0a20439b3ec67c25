"""What an agent acts in: a task's repository behind tools, one action a turn, a reward at the end."""

from .backends import Backend, DockerBackend, Machine, SandboxBackend
from .environment import Environment, Step, Transition
from .profile import CWM, CWM_TRAINING, DEFAULT, PROFILES, Profile
from .history import forget_history
from .issues import issue_task, read_issues
from .outcomes import TestRun, run_tests
from .patches import make_diff, normalize, similarity
from .rewards import Reward, judge
from .selection import Selection, judge_candidates, select, written_test
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
    "Selection",
    "Shell",
    "ShellResult",
    "Step",
    "Task",
    "TestRun",
    "Transition",
    "forget_history",
    "issue_task",
    "judge",
    "judge_candidates",
    "make_diff",
    "normalize",
    "parse_action",
    "read_issues",
    "read_tasks",
    "run_tests",
    "select",
    "similarity",
    "write_tasks",
    "written_test",
]
