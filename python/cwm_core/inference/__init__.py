"""Running models: batched generation with a key/value cache, and prediction of executions. Needs PyTorch."""

from .cache import cache_bytes
from .constraint import Constraint
from .engine import Engine, Event, Generation, Handle, Request
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
