"""Debug predicted execution: step forward and back, change values, verify against the real program."""

from .debugger import Breakpoint, Debugger, DebuggerError, Scope, Step, Stop, Verification
from .frames import EngineFrames, FrameSource, ServerFrames, SourceError

__all__ = [
    "Breakpoint",
    "Debugger",
    "DebuggerError",
    "EngineFrames",
    "FrameSource",
    "Scope",
    "ServerFrames",
    "SourceError",
    "Step",
    "Stop",
    "Verification",
]
