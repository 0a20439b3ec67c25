"""Debug predicted execution: step forward and back, change values, verify against the real program."""

from .debugger import Breakpoint, Debugger, DebuggerError, Scope, Step, Stop, StopReason, Verification
from .frames import EngineFrames, FrameSource, PredictedFrame, ServerFrames, SourceError

__all__ = [
    "Breakpoint",
    "Debugger",
    "DebuggerError",
    "EngineFrames",
    "FrameSource",
    "PredictedFrame",
    "Scope",
    "ServerFrames",
    "SourceError",
    "Step",
    "Stop",
    "StopReason",
    "Verification",
]
