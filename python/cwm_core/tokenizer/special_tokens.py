"""Names of the special tokens: of traces, of chats, and of documents.

Every other module takes the names from here. `Tokenizer.special_tokens` maps the names to the ids of a vocabulary.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from cwm_core import _native

BEGIN_OF_TEXT: Final = "<|begin_of_text|>"
"""Begins a document."""
END_OF_TEXT: Final = "<|end_of_text|>"
"""Ends a document."""
PAD: Final = "<|pad|>"
"""Fills rows."""

START_HEADER_ID: Final = "<|start_header_id|>"
"""Begins the header of a chat message, which holds the role."""
END_HEADER_ID: Final = "<|end_header_id|>"
"""Ends the header of a chat message."""
EOM_ID: Final = "<|eom_id|>"
"""Ends a message that the same turn continues."""
EOT_ID: Final = "<|eot_id|>"
"""Ends a turn of a chat."""
REASONING_THINKING_START: Final = "<|reasoning_thinking_start|>"
"""Begins the reasoning in an assistant's message."""
REASONING_THINKING_END: Final = "<|reasoning_thinking_end|>"
"""Ends the reasoning in an assistant's message."""

TRACE_CONTEXT_START: Final = "<|trace_context_start|>"
"""Begins the context of a trace."""
FRAME_SEP: Final = "<|frame_sep|>"
"""Ends the context and each frame of a trace."""
CALL_SEP: Final = "<|call_sep|>"
"""Begins a CALL frame."""
LINE_SEP: Final = "<|line_sep|>"
"""Begins a LINE frame."""
RETURN_SEP: Final = "<|return_sep|>"
"""Begins a RETURN frame."""
EXCEPTION_SEP: Final = "<|exception_sep|>"
"""Begins an EXCEPTION frame."""
ACTION_SEP: Final = "<|action_sep|>"
"""Comes before the source line of a frame."""
ARG_SEP: Final = "<|arg_sep|>"
"""Comes before the value of a RETURN or EXCEPTION frame."""

EVENT_SEPS: Final[Mapping[str, str]] = MappingProxyType(
    {"call": CALL_SEP, "line": LINE_SEP, "return": RETURN_SEP, "exception": EXCEPTION_SEP}
)
"""The token that begins a frame, by the frame's event."""

TRACE_TOKENS: Final = (
    BEGIN_OF_TEXT,
    END_OF_TEXT,
    TRACE_CONTEXT_START,
    FRAME_SEP,
    ACTION_SEP,
    RETURN_SEP,
    CALL_SEP,
    LINE_SEP,
    EXCEPTION_SEP,
    ARG_SEP,
)
"""The special tokens that a vocabulary needs to express a trace."""

CHAT_TOKENS: Final = (BEGIN_OF_TEXT, START_HEADER_ID, END_HEADER_ID, EOT_ID)
"""The special tokens that a vocabulary needs to express a chat."""

STOP_TOKENS: Final = (END_OF_TEXT, EOM_ID, EOT_ID)
"""The special tokens that end a document or a message, where generation stops."""

CWM_SPECIAL_TOKENS: tuple[str, ...] = _native.CWM_SPECIAL_TOKENS
"""The 256 special tokens of the Code World Model, in the order of their ids, which follow the ordinary tokens."""
