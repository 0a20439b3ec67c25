"""Byte-level BPE: text, chats, and traces to token ids and back."""

from .tokenizer import (
    CL100K_PATTERN,
    CWM_SPECIAL_TOKENS,
    GPT2_PATTERN,
    LLAMA3_PATTERN,
    O200K_PATTERN,
    PATTERNS,
    QWEN2_PATTERN,
    Tokenizer,
    split_pattern,
)

__all__ = [
    "CL100K_PATTERN",
    "CWM_SPECIAL_TOKENS",
    "GPT2_PATTERN",
    "LLAMA3_PATTERN",
    "O200K_PATTERN",
    "PATTERNS",
    "QWEN2_PATTERN",
    "Tokenizer",
    "split_pattern",
]
