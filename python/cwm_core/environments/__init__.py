"""What an agent acts in: a task's repository behind tools, one action a turn, a reward at the end."""

from .agents import (
    Agent,
    Budget,
    EndpointAgent,
    EndpointError,
    EngineAgent,
    Generate,
    Message,
    OutOfBudget,
    Reply,
    ScriptedAgent,
    solution_actions,
    system_prompt,
)
from .backends import Backend, Machine, SandboxBackend
from .distinct import NearDuplicates, distinct
from .encoding import EncodedTrajectory, encode_trajectory, write_shards
from .environment import Environment, Step, Transition
from .rewards import Reward, judge
from .rollouts import rollout, run_rollouts
from .shell import Shell, ShellResult
from .summary import summarize
from .tasks import Task, read_tasks, write_tasks
from .tools import ActionError, Call, parse_action
from .trajectories import Trajectory, TrajectoryReader, TrajectoryWriter, Turn, read_trajectories
from .workers import ProcessWorker, Worker, WorkerError

__all__ = [
    "ActionError",
    "Agent",
    "Backend",
    "Budget",
    "Call",
    "EncodedTrajectory",
    "EndpointAgent",
    "EndpointError",
    "EngineAgent",
    "Environment",
    "Generate",
    "Machine",
    "Message",
    "NearDuplicates",
    "OutOfBudget",
    "ProcessWorker",
    "Reply",
    "Reward",
    "SandboxBackend",
    "ScriptedAgent",
    "Shell",
    "ShellResult",
    "Step",
    "Task",
    "Trajectory",
    "TrajectoryReader",
    "TrajectoryWriter",
    "Transition",
    "Turn",
    "Worker",
    "WorkerError",
    "distinct",
    "encode_trajectory",
    "judge",
    "parse_action",
    "read_tasks",
    "read_trajectories",
    "rollout",
    "run_rollouts",
    "solution_actions",
    "summarize",
    "system_prompt",
    "write_shards",
    "write_tasks",
]
