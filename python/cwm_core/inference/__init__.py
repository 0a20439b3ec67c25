"""Running models: generation with a key/value cache, prediction of executions, a debugger of them, and a server.

Needs PyTorch.
"""

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
    "Constraint",
    "Engine",
    "Event",
    "Generation",
    "Guide",
    "Handle",
    "Output",
    "Prediction",
    "Request",
    "TraceConstraint",
    "TraceGrammar",
    "cache_bytes",
    "predict_guided",
    "predict_output",
    "predict_states",
    "predict_step",
    "predict_trace",
    "predict_traces",
    "trace_prompt",
]
