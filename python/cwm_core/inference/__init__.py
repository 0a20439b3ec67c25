"""Running models: batched generation with a key/value cache, and prediction of executions. Needs PyTorch."""

from .cache import cache_bytes
from .constraint import Constraint
from .engine import Engine, Event, Generation, Handle, Request
from .prediction import Prediction, predict_states, predict_trace, predict_traces, trace_prompt

__all__ = [
    "Constraint",
    "Engine",
    "Event",
    "Generation",
    "Handle",
    "Prediction",
    "Request",
    "cache_bytes",
    "predict_states",
    "predict_trace",
    "predict_traces",
    "trace_prompt",
]
