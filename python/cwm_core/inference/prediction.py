"""Predicting executions: the prompt of a trace, free prediction, and prediction of states along known lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..tokenizer import Tokenizer
from ..trace import ParsedTrace, Trace, source_context
from .engine import Engine

END = "<|end_of_text|>"


@dataclass(frozen=True)
class Prediction:
    """What a model predicted of one execution, after the frames that stood in the prompt."""

    parsed: ParsedTrace
    """The predicted frames, strictly parsed, without those of the prompt."""
    ids: np.ndarray
    """int32 [n]: the tokens after the prompt, as generated."""
    logprobs: np.ndarray
    """float32 [n]: the log probability of each token in nats; NaN where it was supplied."""


def trace_prompt(tokenizer: Tokenizer, code: str, call: str) -> np.ndarray:
    """The tokens before the prediction of `record_source(code, call)`, int32 [n]: context and first frame.

    Nothing is run. Raises ValueError when the vocabulary lacks a special token of the trace format.
    """
    special = tokenizer.special_tokens

    def marks(*names: str) -> np.ndarray:
        for name in names:
            if name not in special:
                raise ValueError(f"{name!r} is not a special token of this vocabulary, which a trace needs")
        return np.array([special[name] for name in names], np.int32)

    return np.concatenate(
        [
            marks("<|begin_of_text|>", "<|trace_context_start|>"),
            tokenizer.encode(source_context(code, call)),
            marks("<|frame_sep|>", "<|call_sep|>"),
            tokenizer.encode("{}"),
            marks("<|action_sep|>"),
            tokenizer.encode("def main():\n"),
            marks("<|frame_sep|>"),
        ]
    )


def predict_trace(engine: Engine, code: str, call: str, *, max_new_tokens: int = 4096) -> Prediction:
    """Predict the execution of the expression `call` in the module `code`, greedily, from its `trace_prompt`.

    Raises ValueError when the engine has no tokenizer, or as `trace_prompt`.
    """
    return _predict(engine, [trace_prompt(_tokenizer(engine), code, call)], max_new_tokens)[0]


def predict_traces(engine: Engine, traces: Sequence[Trace], *, max_new_tokens: int = 4096) -> list[Prediction]:
    """Predict recorded executions from their contexts and first frames alone, greedily: what scores are made of."""
    tokenizer = _tokenizer(engine)
    prompts = [_Layout(tokenizer, trace).prompt for trace in traces]
    return _predict(engine, prompts, max_new_tokens)


def predict_states(engine: Engine, traces: Sequence[Trace], *, max_new_tokens: int = 4096) -> list[Prediction]:
    """Predict the states and values of recorded executions, their true events and lines supplied frame by frame.

    What the model wrote for earlier states stays as it wrote it. A prediction ends where the model breaks the form.
    """
    tokenizer = _tokenizer(engine)
    guides = [_Guide(tokenizer, trace) for trace in traces]
    generations = engine.generate(
        [guide.prompt for guide in guides],
        max_new_tokens,
        [tokenizer.special_tokens[END]],
        on_token=lambda i, ids: guides[i].supply(ids[-1]),
    )
    predictions = []
    for guide, generation in zip(guides, generations, strict=True):
        ids = np.concatenate([guide.opening, generation.ids])
        logprobs = np.concatenate([np.full(len(guide.opening), np.nan, np.float32), generation.logprobs])
        predictions.append(Prediction(tokenizer.parse_trace(ids), ids, logprobs))
    return predictions


def _tokenizer(engine: Engine) -> Tokenizer:
    if engine.tokenizer is None:
        raise ValueError("predicting traces needs an engine with a tokenizer")
    return engine.tokenizer


def _predict(engine: Engine, prompts: Sequence[np.ndarray], max_new_tokens: int) -> list[Prediction]:
    tokenizer = _tokenizer(engine)
    generations = engine.generate(prompts, max_new_tokens, [tokenizer.special_tokens[END]])
    return [Prediction(tokenizer.parse_trace(g.ids), g.ids, g.logprobs) for g in generations]


class _Layout:
    """Where the frames of a trace lie among its tokens."""

    def __init__(self, tokenizer: Tokenizer, trace: Trace) -> None:
        self.ids = tokenizer.encode_trace(trace)
        spans, self.context = tokenizer.trace_spans(trace)
        self.states, self.lines, self.values = spans[:, 0], spans[:, 1], spans[:, 2]
        # Each frame's last part is followed by its <|frame_sep|>.
        ends = spans[:, :, 1].max(1, initial=self.context) + 1
        self.starts = np.concatenate([[self.context], ends])

    @property
    def prompt(self) -> np.ndarray:
        """The context and the first frame."""
        return self.ids[: self.starts[1]]


class _Guide:
    """Supplies the true events and lines of one trace while the model writes states and values."""

    def __init__(self, tokenizer: Tokenizer, trace: Trace) -> None:
        layout = _Layout(tokenizer, trace)
        special = tokenizer.special_tokens
        self.ids, self.layout = layout.ids, layout
        self.specials = frozenset(special.values())
        self.action, self.frame_sep, self.end = special["<|action_sep|>"], special["<|frame_sep|>"], special[END]
        self.frame = 1
        self.opening = self._open()
        self.prompt = np.concatenate([layout.prompt, self.opening])

    def supply(self, token: int) -> list[int] | None:
        """What follows the model's token: nothing within its part, else everything up to its next part."""
        if token not in self.specials:
            return None
        if token != (self.action if self._has_state() else self.frame_sep):
            return [self.end]
        line = []
        if self._has_state():
            start, end = self.layout.lines[self.frame]
            line = [*self.ids[start:end].tolist(), self.frame_sep]
        self.frame += 1
        return [*line, *self._open().tolist()]

    def _has_state(self) -> bool:
        return bool(self.layout.states[self.frame, 0] >= 0)

    def _open(self) -> np.ndarray:
        """The tokens of the current frame before the model's part of it; the end token after the last frame."""
        if self.frame >= len(self.layout.states):
            return np.array([self.end], np.int32)
        part = self.layout.states if self._has_state() else self.layout.values
        return self.ids[self.layout.starts[self.frame] : part[self.frame, 0]]
