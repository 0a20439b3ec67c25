"""Running models: batched generation with a key/value cache, and prediction of executions. Needs PyTorch."""

from .engine import Engine, Generation
from .prediction import Prediction, predict_states, predict_trace, predict_traces, trace_prompt

__all__ = ["Engine", "Generation", "Prediction", "predict_states", "predict_trace", "predict_traces", "trace_prompt"]
