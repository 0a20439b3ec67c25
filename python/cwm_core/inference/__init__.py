"""Running models: batched generation with a key/value cache, prediction of executions, and a debugger of them.

Needs PyTorch.
"""

from .debugger import Breakpoint, Debugger, DebuggerError, Scope, Step, Stop, Verification
from .engine import Engine, Generation
from .frames import EngineFrames, FrameSource, ServerFrames, SourceError
from .prediction import Prediction, predict_states, predict_trace, predict_traces, trace_prompt

__all__ = [
    "Breakpoint",
    "Debugger",
    "DebuggerError",
    "Engine",
    "EngineFrames",
    "FrameSource",
    "Generation",
    "Prediction",
    "Scope",
    "ServerFrames",
    "SourceError",
    "Step",
    "Stop",
    "Verification",
    "predict_states",
    "predict_trace",
    "predict_traces",
    "trace_prompt",
]
