"""Encode traces as training documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tokenizer import Tokenizer
from ..trace import Trace


class TrainingDocument(NamedTuple):
    """Tokens of a document, as `ShardWriter.add` takes them."""

    ids: NDArray[np.int32]
    """int32 [n]. Token ids."""
    loss_mask: NDArray[np.bool_]
    """bool [n]. True where the token is in the loss."""
    spans: dict[str, NDArray[np.int32]]
    """int32 [k, 2] by label. First token of every span, and the token after its last."""


def encode_for_training(tokenizer: Tokenizer, trace: Trace) -> TrainingDocument:
    """Encode a trace as a training document.

    The loss is on the tokens after the first frame: context and first frame are the prompt of a prediction. Spans are
    labeled `context` (everything before the first frame), and `state`, `action`, and `value` within frames.

    Raises:
        ValueError: The trace cannot be encoded, as in `Tokenizer.encode_trace`.
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
    """Yield the parts of a trace that are encoded separately, for `Tokenizer.train`. They hold no special tokens."""
    yield trace.context
    for frame in trace.frames:
        yield frame.line
        yield json.dumps(frame.arg if frame.locals is None else frame.locals)
