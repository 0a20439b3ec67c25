"""Traces as training data: which tokens of one are learned, and the texts that a vocabulary for them is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer
from ..trace import Trace


def encode_for_training(tokenizer: Tokenizer, trace: Trace) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Token ids and loss mask of a trace, both of shape [n].

    The mask is True after the first frame: context and first frame stand in the prompt of a prediction, what follows is
    predicted. Raises ValueError as `Tokenizer.encode_trace`.
    """
    ids = tokenizer.encode_trace(trace)
    spans, prompt = tokenizer.trace_spans(trace)
    if len(spans):
        prompt = spans[0, :, 1].max() + 1  # the <|frame_sep|> that closes the frame
    return ids, np.arange(len(ids)) >= prompt


def training_texts(trace: Trace) -> Iterator[str]:
    """The parts of a trace that are encoded each by itself, for `Tokenizer.train`: no special token is among them."""
    yield trace.context
    for frame in trace.frames:
        yield frame.line
        yield json.dumps(frame.arg if frame.locals is None else frame.locals)
