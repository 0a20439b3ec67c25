"""Predict executions: whole traces, single frames, return values, and states along known lines."""

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
from .engine import Engine
from .grammar import TraceConstraint, TraceGrammar
from .prompts import recorded_prompt, trace_prompt
from .requests import Generation

EVENTS = ("call", "line", "return", "exception")

Guide = Callable[[Sequence[Any]], tuple[str, str] | None]
"""Function from the frames so far to the event and line of the next frame; it returns None at the end of the trace."""


@dataclass(frozen=True)
class Prediction:
    """A model's prediction of one execution, after the frames in the prompt."""

    parsed: ParsedTrace
    """Predicted frames, strictly parsed, without those of the prompt."""
    ids: np.ndarray
    """Generated tokens, int32 [n]."""
    logprobs: np.ndarray
    """Log probability of each token in nats, ignoring constraints, float32 [n]; NaN for supplied tokens."""

    def frame_logprobs(self, tokenizer: Tokenizer) -> NDArray[np.float64]:
        """Return the log probability of each part of each predicted frame, given everything before it.

        The log probability of a part is the sum over the tokens that the model wrote, including the special token that
        ends the part.

        Returns:
            Log probabilities in nats of the event, LOCALS, LINE and VALUE, float64 [frames, 4]. NaN if the model wrote
            no token of a part, or the event lacks it.
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
    """A model's prediction of the return value of a call."""

    value: str | None
    """Rendered return value; None if the prediction stops earlier or ends in an exception."""
    probability: float
    """Probability of the value, given the predicted frames before it; 0 without a value."""
    prediction: Prediction
    """Predicted trace that contains the value."""


def predict_trace(
    engine: Engine,
    code: str,
    call: str,
    *,
    max_new_tokens: int = 4096,
    constrained: bool = True,
    source_lines: bool = False,
) -> Prediction:
    """Predict the execution of an expression in a module, greedily.

    Args:
        engine: An engine with a tokenizer.
        code: The source of the module.
        call: The expression.
        max_new_tokens: Maximum number of generated tokens.
        constrained: Generate only well-formed traces, which `max_new_tokens` may still cut.
        source_lines: Also restrict action lines to the lines of `code` and its `main()`.

    Returns:
        The prediction after `trace_prompt`.

    Raises:
        ValueError: The engine has no tokenizer, its vocabulary lacks a special token of the trace format, or
            `source_lines` is set without `constrained`.
    """
    if source_lines and not constrained:
        raise ValueError("source_lines needs constrained=True")
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
    """Predict recorded executions greedily, each from its context and first frame, for scoring.

    Predictions are unconstrained by default, because published scores count how often a model keeps the format.
    """
    tokenizer = _tokenizer(engine)
    prompts = [recorded_prompt(tokenizer, trace) for trace in traces]
    constraints = [_grammar(engine).constraint(prompt) for prompt in prompts] if constrained else None
    return _predict(engine, prompts, max_new_tokens, constraints)


def predict_output(
    engine: Engine, code: str, call: str, *, max_new_tokens: int = 4096, source_lines: bool = False
) -> PredictedOutput:
    """Predict the return value of an expression in a module: the RETURN frame of `main()` in a predicted trace.

    Takes the arguments of `predict_trace`, and raises the same errors.
    """
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
    """Predict the next frame of an incomplete trace, greedily.

    Args:
        engine: An engine with a tokenizer.
        trace: The trace, or its token ids.
        max_new_tokens: Maximum number of generated tokens.
        constrained: Generate only a well-formed frame.

    Returns:
        The prediction. If the model predicts the end of the trace, it has no frame and `parsed.complete` is true.
    """
    tokenizer = _tokenizer(engine)
    prompt = tokenizer.encode_trace(trace) if isinstance(trace, Trace) else np.asarray(trace, np.int32)
    constraints = [_grammar(engine).constraint(prompt)] if constrained else None
    stops = [tokenizer.special_tokens[name] for name in (FRAME_SEP, END_OF_TEXT)]
    return _predictions(tokenizer, engine.generate([prompt], max_new_tokens, stops, **_given(constraints)))[0]


def predict_states(
    engine: Engine, traces: Sequence[Trace], *, max_new_tokens: int = 4096, constrained: bool = True
) -> list[Prediction]:
    """Predict the states and values of recorded executions, given their true events and lines.

    The predicted states of earlier frames stay in the model's context. An unconstrained prediction ends where the model
    breaks the format.
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
    """Predict states and values after each prompt, with the events and lines that guides supply.

    A guide can be an interpreter that runs beside the model, or a user who asks about another branch.

    Args:
        engine: An engine with a tokenizer.
        prompts: Prompts, such as those of `trace_prompt`.
        guides: One guide for each prompt, called before each frame with all frames so far. Its line ends in a newline,
            as in traces.
        max_new_tokens: Maximum number of new tokens, including those from guides.
        constrained: Generate only well-formed traces.

    Raises:
        ValueError: A guide returned an unknown event.
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
    tokenizer: Tokenizer | None = engine.tokenizer
    if tokenizer is None:
        raise ValueError("the engine has no tokenizer, which predictions need: Engine(model, tokenizer)")
    return tokenizer


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
    """Supply the events and lines of one execution while the model writes its states and values."""

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, guide: Guide) -> None:
        self.tokenizer, self.guide = tokenizer, guide
        self.special = tokenizer.special_tokens
        self.specials = frozenset(self.special.values())
        self.frames = list(tokenizer.parse_trace(prompt).frames)
        self.has_state = False
        self.line: list[int] = []
        self.frame: list[int] = []
        self.opening = np.array(self._open(), np.int32)
        self.prompt = np.concatenate([prompt, self.opening])

    def supply(self, token: int) -> list[int] | None:
        """Return the tokens between the model's token and its next part; None inside a part."""
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
        """Return the tokens of the next frame before the model's part; the end token after the last frame."""
        following = self.guide(self.frames)
        if following is None:
            return [self.special[END_OF_TEXT]]
        event, line = following
        if event not in EVENTS:
            raise ValueError(f"the guide returned the event {event!r}; expected one of {', '.join(EVENTS)}")
        self.has_state = event in ("call", "line")
        self.line = self.tokenizer.encode(line).tolist()
        self.frame = [self.special[EVENT_SEPS[event]]]
        if not self.has_state:
            self.frame += [self.special[ACTION_SEP], *self.line, self.special[ARG_SEP]]
        return list(self.frame)
