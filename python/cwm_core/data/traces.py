"""Traces as training data: which tokens of one are learned, and the texts that a vocabulary for them is made from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer
from ..trace import Trace


class TrainingDocument(NamedTuple):
    """What `ShardWriter.add` takes.

    `ids`: int32 [n]. `loss_mask`: bool [n]. `spans`: by label, int32 [k, 2], first token and token after the last.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    spans: dict[str, NDArray[np.int32]]


def encode_for_training(tokenizer: Tokenizer, trace: Trace) -> TrainingDocument:
    """A trace as a document.

    The loss mask is True after the first frame: context and first frame stand in the prompt of a prediction, what
    follows is predicted. Spans are labelled `context` (all before the first frame), and `state`, `action` and `value`
    within frames. Raises ValueError as `Tokenizer.encode_trace`.
    """
    ids, parts, context = tokenizer.trace_tokens(trace)
    # FRAME_SEP follows the last part of the first frame.
    prompt = parts[0, :, 1].max() + 1 if len(parts) else context
    spans = {"context": np.array([[0, context]], np.int32)}
    for number, label in enumerate(("state", "action", "value")):
        bounds = parts[:, number]
        spans[label] = bounds[bounds[:, 0] < bounds[:, 1]]
    return TrainingDocument(ids, np.arange(len(ids)) >= prompt, spans)


def training_texts(trace: Trace) -> Iterator[str]:
    """The parts of a trace that are encoded each by itself, for `Tokenizer.train`: no special token is among them."""
    yield trace.context
    for frame in trace.frames:
        yield frame.line
        yield json.dumps(frame.arg if frame.locals is None else frame.locals)
