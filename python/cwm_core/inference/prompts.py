"""Build the prompts of predictions, evaluations and the debugger, as token ids."""

from __future__ import annotations

import numpy as np

from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import ACTION_SEP, BEGIN_OF_TEXT, CALL_SEP, FRAME_SEP, TRACE_CONTEXT_START
from ..trace import Trace, source_context


def trace_prompt(tokenizer: Tokenizer, code: str, call: str) -> np.ndarray:
    """Return the prompt for predicting the trace of `record_source(code, call)`: its context and its first frame.

    The program does not run.

    Args:
        tokenizer: The vocabulary of the model.
        code: The source of a module.
        call: An expression in the names of the module.

    Returns:
        The token ids, int32 [n].

    Raises:
        ValueError: The vocabulary lacks a special token of the trace format.
    """
    special = tokenizer.special_tokens

    def marks(*names: str) -> np.ndarray:
        for name in names:
            if name not in special:
                raise ValueError(f"the vocabulary lacks {name!r}, a special token of the trace format")
        return np.array([special[name] for name in names], np.int32)

    return np.concatenate(
        [
            marks(BEGIN_OF_TEXT, TRACE_CONTEXT_START),
            tokenizer.encode(source_context(code, call)),
            marks(FRAME_SEP, CALL_SEP),
            tokenizer.encode("{}"),
            marks(ACTION_SEP),
            tokenizer.encode("def main():\n"),
            marks(FRAME_SEP),
        ]
    )


def recorded_prompt(tokenizer: Tokenizer, trace: Trace) -> np.ndarray:
    """Return the context and the first frame of a recorded trace, int32 [n]."""
    ids, spans, context_length = tokenizer.trace_tokens(trace)
    # The last part of a frame is followed by the frame's <|frame_sep|>.
    return ids[: spans[0, :, 1].max() + 1 if len(spans) else context_length]


def completion_prompt(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return the tokens of a document that begins with `text`, int32 [n]."""
    begin = tokenizer.special_tokens.get(BEGIN_OF_TEXT)
    return np.concatenate([np.array([] if begin is None else [begin], np.int32), tokenizer.encode(text)])


def chat_prompt(tokenizer: Tokenizer, text: str, *, reasoning: bool = False) -> np.ndarray:
    """Return a chat of one user message, up to the point where the model answers, int32 [n].

    Raises:
        ValueError: The vocabulary lacks a special token of chats.
    """
    chat = [{"role": "user", "content": text}]
    return tokenizer.encode_chat(chat, reasoning=reasoning, add_generation_prompt=True)[0]
