"""Predicting executions: whole traces, one frame, the output, and states along lines that somebody else knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import (
    ACTION_SEP,
    ARG_SEP,
    END_OF_TEXT,
    EVENT_SEPS,
    FRAME_SEP,
)
from ..trace import ParsedTrace, Trace, last_return, source_context
from .engine import Engine, Generation
from .grammar import TraceConstraint, TraceGrammar
from .prompts import recorded_prompt, trace_prompt

EVENTS = ("call", "line", "return", "exception")

Guide = Callable[[Sequence[Any]], tuple[str, str] | None]
"""From the frames so far, the event and the line of the next one; None where the trace ends."""


@dataclass(frozen=True)
class Prediction:
    """What a model predicted of one execution, after the frames that stood in the prompt."""

    parsed: ParsedTrace
    """The predicted frames, strictly parsed, without those of the prompt."""
    ids: np.ndarray
    """int32 [n]: the tokens after the prompt, as generated."""
    logprobs: np.ndarray
    """float32 [n]: the log probability of each token in nats, without a constraint; NaN where it was supplied."""

    def frame_logprobs(self, tokenizer: Tokenizer) -> NDArray[np.float64]:
        """Log probabilities [frames, 4] of each predicted frame's event, LOCALS, LINE and VALUE, given all before.

        Those of a part's tokens and of the special token that ends it, added up, as far as the model wrote them. NaN
        where it wrote none of them, or the event has no such part.
        """
        names = {id: name for name, id in tokenizer.special_tokens.items()}
        sums = np.full((len(self.parsed.frames), 4), np.nan)
        row, part = 0, 0
        for token, logprob in zip(self.ids.tolist(), self.logprobs.tolist(), strict=True):
            if row == len(sums):
                break
            name = names.get(token)
            has_part = part != 1 or self.parsed.frames[row].locals is not None
            if has_part and not np.isnan(logprob):
                sums[row, part] = np.nan_to_num(sums[row, part]) + logprob
            if name == FRAME_SEP:
                row, part = row + 1, 0
            elif name is not None:
                part += 1
        return sums


@dataclass(frozen=True)
class PredictedOutput:
    """What a model predicted that a call returns."""

    value: str | None
    """The rendered value that the call returns; None where the prediction was cut before or ends in an exception."""
    probability: float
    """Of this value, given the predicted frames before it; 0 where there is none."""
    prediction: Prediction
    """The trace that led to it."""


def predict_trace(
    engine: Engine,
    code: str,
    call: str,
    *,
    max_new_tokens: int = 4096,
    constrained: bool = True,
    source_lines: bool = False,
) -> Prediction:
    """Predict the execution of the expression `call` in the module `code`, greedily, from its `trace_prompt`.

    `constrained` predictions are always well formed, though `max_new_tokens` may cut them. With `source_lines`, action
    lines are moreover lines of `code` and its `main()`.

    Raises ValueError when the engine has no tokenizer, for `source_lines` without `constrained`, or as `trace_prompt`.
    """
    if source_lines and not constrained:
        raise ValueError("only constrained predictions can be held to the lines of the source")
    tokenizer = _tokenizer(engine)
    prompt = trace_prompt(tokenizer, code, call)
    constraints = None
    if constrained:
        grammar = _grammar(engine)
        if source_lines:
            grammar = grammar.for_context(source_context(code, call))
        constraints = [grammar.constraint(prompt)]
    return _predict(engine, [prompt], max_new_tokens, constraints)[0]


def predict_traces(
    engine: Engine, traces: Sequence[Trace], *, max_new_tokens: int = 4096, constrained: bool = False
) -> list[Prediction]:
    """Predict recorded executions from their contexts and first frames alone, greedily: what scores are made of.

    Not `constrained`, unless asked for: published scores count how often the form is kept.
    """
    tokenizer = _tokenizer(engine)
    prompts = [recorded_prompt(tokenizer, trace) for trace in traces]
    constraints = [_grammar(engine).constraint(prompt) for prompt in prompts] if constrained else None
    return _predict(engine, prompts, max_new_tokens, constraints)


def predict_output(
    engine: Engine, code: str, call: str, *, max_new_tokens: int = 4096, source_lines: bool = False
) -> PredictedOutput:
    """Predict what `call` returns in the module `code`: by the RETURN frame of `main()` in `predict_trace`."""
    prediction = predict_trace(engine, code, call, max_new_tokens=max_new_tokens, source_lines=source_lines)
    frames = list(prediction.parsed.frames)
    returned = last_return(frames, complete=prediction.parsed.complete, depth=1)
    if returned is None:
        return PredictedOutput(None, 0.0, prediction)
    logprob = prediction.frame_logprobs(_tokenizer(engine))[returned, 3]
    return PredictedOutput(frames[returned].arg, float(np.exp(logprob)), prediction)


def predict_step(
    engine: Engine, trace: Trace | Sequence[int] | np.ndarray, *, max_new_tokens: int = 1024, constrained: bool = True
) -> Prediction:
    """Predict the frame that follows those of `trace`, a Trace that was cut or the tokens of one, greedily.

    No frame and `parsed.complete` where the model predicts the end.
    """
    tokenizer = _tokenizer(engine)
    prompt = tokenizer.encode_trace(trace) if isinstance(trace, Trace) else np.asarray(trace, np.int32)
    constraints = [_grammar(engine).constraint(prompt)] if constrained else None
    stops = [tokenizer.special_tokens[name] for name in (FRAME_SEP, END_OF_TEXT)]
    return _predictions(tokenizer, engine.generate([prompt], max_new_tokens, stops, **_given(constraints)))[0]


def predict_states(
    engine: Engine, traces: Sequence[Trace], *, max_new_tokens: int = 4096, constrained: bool = True
) -> list[Prediction]:
    """Predict the states and values of recorded executions, their true events and lines supplied frame by frame.

    What the model wrote for earlier states stays as it wrote it. A prediction that is not `constrained` ends where the
    model breaks the form.
    """

    def guide(trace: Trace) -> Guide:
        def next_line(frames: Sequence[Any]) -> tuple[str, str] | None:
            if len(frames) == len(trace):
                return None
            frame = trace.frames[len(frames)]
            return frame.event, frame.line

        return next_line

    prompts = [recorded_prompt(_tokenizer(engine), trace) for trace in traces]
    guides = [guide(trace) for trace in traces]
    return predict_guided(engine, prompts, guides, max_new_tokens=max_new_tokens, constrained=constrained)


def predict_guided(
    engine: Engine,
    prompts: Sequence[np.ndarray],
    guides: Sequence[Guide],
    *,
    max_new_tokens: int = 4096,
    constrained: bool = True,
) -> list[Prediction]:
    """Predict states and values after each prompt, such as `trace_prompt` makes, where guides know the lines.

    A guide is asked before each frame, with all frames so far: an interpreter that runs beside the model, say, or a
    user. Its line ends in a newline, as in traces. Tokens that come from guides count towards `max_new_tokens`.

    Raises ValueError for an event that is none.
    """
    tokenizer = _tokenizer(engine)
    guided = [_Guided(tokenizer, prompt, guide) for prompt, guide in zip(prompts, guides, strict=True)]
    constraints = [_grammar(engine).constraint(one.prompt) for one in guided] if constrained else None
    generations = engine.generate(
        [one.prompt for one in guided],
        max_new_tokens,
        [tokenizer.special_tokens[END_OF_TEXT]],
        on_token=lambda i, ids: guided[i].supply(ids[-1]),
        **_given(constraints),
    )
    predictions = []
    for one, generation in zip(guided, generations, strict=True):
        ids = np.concatenate([one.opening, generation.ids])
        logprobs = np.concatenate([np.full(len(one.opening), np.nan, np.float32), generation.logprobs])
        predictions.append(Prediction(tokenizer.parse_trace(ids), ids, logprobs))
    return predictions


def _tokenizer(engine: Engine) -> Tokenizer:
    if engine.tokenizer is None:
        raise ValueError("predicting traces needs an engine with a tokenizer")
    return engine.tokenizer


def _grammar(engine: Engine) -> TraceGrammar:
    return _compiled(_tokenizer(engine), engine.model.config.vocab_size)


@lru_cache(maxsize=2)
def _compiled(tokenizer: Tokenizer, vocab_size: int) -> TraceGrammar:
    return TraceGrammar(tokenizer, vocab_size=vocab_size)


def _given(constraints: list[TraceConstraint] | None) -> dict[str, Any]:
    return {} if constraints is None else {"constraints": constraints}


def _predict(
    engine: Engine, prompts: Sequence[np.ndarray], max_new_tokens: int, constraints: list[TraceConstraint] | None
) -> list[Prediction]:
    tokenizer = _tokenizer(engine)
    stops = [tokenizer.special_tokens[END_OF_TEXT]]
    return _predictions(tokenizer, engine.generate(prompts, max_new_tokens, stops, **_given(constraints)))


def _predictions(tokenizer: Tokenizer, generations: list[Generation]) -> list[Prediction]:
    return [Prediction(tokenizer.parse_trace(g.ids), g.ids, g.logprobs) for g in generations]


class _Guided:
    """Supplies the events and lines of one execution while the model writes its states and values."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, guide: Guide) -> None:
        self.tokenizer, self.guide = tokenizer, guide
        self.special = tokenizer.special_tokens
        self.specials = frozenset(self.special.values())
        self.frames = list(tokenizer.parse_trace(prompt).frames)
        self.opening = np.array(self._open(), np.int32)
        self.prompt = np.concatenate([prompt, self.opening])

    def supply(self, token: int) -> list[int] | None:
        """What follows the model's token: nothing within its part, else everything up to its next part."""
        self.frame.append(token)
        if token not in self.specials:
            return None
        if token != self.special[ACTION_SEP if self.has_state else FRAME_SEP]:
            return [self.special[END_OF_TEXT]]
        rest = [*self.line, self.special[FRAME_SEP]] if self.has_state else []
        parsed = self.tokenizer.parse_trace([*self.frame, *rest])
        if parsed.error is not None:
            return [*rest, self.special[END_OF_TEXT]]
        self.frames += parsed.frames
        return [*rest, *self._open()]

    def _open(self) -> list[int]:
        """Begins the next frame: the tokens before the model's part of it, or the end token after the last frame."""
        following = self.guide(self.frames)
        if following is None:
            return [self.special[END_OF_TEXT]]
        event, line = following
        if event not in EVENTS:
            raise ValueError(f"the event of a frame is one of {EVENTS}, not {event!r}")
        self.has_state = event in ("call", "line")
        self.line = self.tokenizer.encode(line).tolist()
        self.frame = [self.special[EVENT_SEPS[event]]]
        if not self.has_state:
            self.frame += [self.special[ACTION_SEP], *self.line, self.special[ARG_SEP]]
        return list(self.frame)
