"""Environments for agents: the repository of a task behind tools, one action per turn, and a reward at the end."""

from .agents import (
    Agent,
    Budget,
    EndpointAgent,
    EndpointError,
    EndReason,
    EngineAgent,
    Generate,
    Message,
    OutOfBudget,
    Reply,
    ReplyEnd,
    ScriptedAgent,
    solution_actions,
    system_prompt,
)
from .distinct import NearDuplicates, distinct
from .encoding import EncodedTrajectory, encode_trajectory, write_shards
from .environment import Environment, EpisodeStep, Transition
from .history import forget_history
from .issues import issue_task, read_issues
from .outcomes import TestOutcome, TestRun, run_tests
from .patches import make_diff, normalize, similarity
from .profile import CWM, CWM_TRAINING, DEFAULT, PROFILES, Profile
from .rewards import Reward, RewardFunction, judge
from .rollouts import rollout, run_rollouts
from .selection import Selection, judge_candidates, select, written_test
from .summary import RolloutSummary, summarize
from .tasks import Task, read_tasks, write_tasks
from .tools import ActionError, Call, Tool, parse_action
from .trajectories import Trajectory, TrajectoryReader, TrajectoryWriter, Turn, read_trajectories
from .workers import EnvironmentWorker, ProcessWorker, WorkerError

__all__ = [
    "CWM",
    "CWM_TRAINING",
    "DEFAULT",
    "PROFILES",
    "ActionError",
    "Agent",
    "Budget",
    "Call",
    "EncodedTrajectory",
    "EndReason",
    "EndpointAgent",
    "EndpointError",
    "EngineAgent",
    "Environment",
    "EnvironmentWorker",
    "EpisodeStep",
    "Generate",
    "Message",
    "NearDuplicates",
    "OutOfBudget",
    "ProcessWorker",
    "Profile",
    "Reply",
    "ReplyEnd",
    "Reward",
    "RewardFunction",
    "RolloutSummary",
    "ScriptedAgent",
    "Selection",
    "Task",
    "TestOutcome",
    "TestRun",
    "Tool",
    "Trajectory",
    "TrajectoryReader",
    "TrajectoryWriter",
    "Transition",
    "Turn",
    "WorkerError",
    "distinct",
    "encode_trajectory",
    "forget_history",
    "issue_task",
    "judge",
    "judge_candidates",
    "make_diff",
    "normalize",
    "parse_action",
    "read_issues",
    "read_tasks",
    "read_trajectories",
    "rollout",
    "run_rollouts",
    "run_tests",
    "select",
    "similarity",
    "solution_actions",
    "summarize",
    "system_prompt",
    "write_shards",
    "write_tasks",
    "written_test",
]
