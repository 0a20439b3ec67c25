"""Generate with a key-value cache, predict executions, and serve models. Requires PyTorch."""

from .cache import cache_bytes
from .constraint import Constraint
from .engine import Engine
from .grammar import TraceConstraint, TraceGrammar
from .prediction import (
    Guide,
    PredictedOutput,
    Prediction,
    predict_guided,
    predict_output,
    predict_states,
    predict_step,
    predict_trace,
    predict_traces,
)
from .prompts import chat_prompt, completion_prompt, recorded_prompt, trace_prompt
from .requests import Event, FinishReason, Generation, Handle, Request

__all__ = [
    "Constraint",
    "Engine",
    "Event",
    "FinishReason",
    "Generation",
    "Guide",
    "Handle",
    "PredictedOutput",
    "Prediction",
    "Request",
    "TraceConstraint",
    "TraceGrammar",
    "cache_bytes",
    "chat_prompt",
    "completion_prompt",
    "predict_guided",
    "predict_output",
    "predict_states",
    "predict_step",
    "predict_trace",
    "predict_traces",
    "recorded_prompt",
    "trace_prompt",
]
