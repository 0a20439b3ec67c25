"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from cwm_core.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
