"""Agents: scripts, a model on the built-in engine, and a model behind an HTTP endpoint."""

from ...support.endpoint import EndpointError
from .endpoint import EndpointAgent
from .engine import EngineAgent
from .prompt import system_prompt
from .protocol import Agent, Budget, EndReason, Generate, Message, OutOfBudget, Reply, ReplyEnd
from .scripted import ScriptedAgent, solution_actions

__all__ = [
    "Agent",
    "Budget",
    "EndReason",
    "EndpointAgent",
    "EndpointError",
    "EngineAgent",
    "Generate",
    "Message",
    "OutOfBudget",
    "Reply",
    "ReplyEnd",
    "ScriptedAgent",
    "solution_actions",
    "system_prompt",
]
