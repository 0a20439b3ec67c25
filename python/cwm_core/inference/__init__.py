"""Running models: generation with a key/value cache, prediction of executions, a debugger of them, and a server.

Needs PyTorch.
"""

from ..debugger.debugger import Breakpoint, Debugger, DebuggerError, Scope, Step, Stop, Verification
from ..debugger.frames import EngineFrames, FrameSource, ServerFrames, SourceError
from .cache import cache_bytes
from .constraint import Constraint
from .engine import Engine
from .grammar import TraceConstraint, TraceGrammar
from .prediction import (
    Guide,
    Output,
    Prediction,
    predict_guided,
    predict_output,
    predict_states,
    predict_step,
    predict_trace,
    predict_traces,
    trace_prompt,
)
from .requests import Event, Generation, Handle, Request

__all__ = [
    "Breakpoint", "Constraint", "Debugger", "DebuggerError", "Engine", "EngineFrames", "Event", "FrameSource",
    "Generation", "Guide", "Handle", "Output", "Prediction", "Request", "Scope", "ServerFrames", "SourceError", "Step",
    "Stop", "TraceConstraint", "TraceGrammar", "Verification", "cache_bytes", "predict_guided", "predict_output",
    "predict_states", "predict_step", "predict_trace", "predict_traces", "trace_prompt",
]  # fmt: skip
