"""Byte-level BPE: encode text, chats, and traces to token ids, and decode them."""

from .special_tokens import CWM_SPECIAL_TOKENS
from .tokenizer import (
    CL100K_PATTERN,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    PATTERNS,
    QWEN2_PATTERN,
    ChatTokens,
    StreamDecoder,
    Tokenizer,
    TraceTokens,
    resolve_pattern,
)

__all__ = [
    "CL100K_PATTERN",
    "CWM_SPECIAL_TOKENS",
    "GPT2_PATTERN",
    "LLAMA3_PATTERN",
    "O200K_PATTERN",
    "PATTERNS",
    "QWEN2_PATTERN",
    "ChatTokens",
    "StreamDecoder",
    "Tokenizer",
    "TraceTokens",
    "resolve_pattern",
]
