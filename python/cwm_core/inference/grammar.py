"""Constrain generated tokens to well-formed traces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native

from ..tokenizer import Tokenizer
from ..trace import source_lines


class TraceGrammar:
    """The grammar of traces in the tokens of a vocabulary. It is immutable; constraints share it.

    A token sequence is well formed if and only if `Tokenizer.parse_trace` reads it as complete and without an error,
    regardless of how its texts are split into tokens, and each `..` refers to a value: in a LINE frame, for a variable
    of the activation's previous CALL or LINE frame, or in the pair `"..": ".."` that stands for omitted variables.
    """

    def __init__(self, tokenizer: Tokenizer, context: str | None = None, *, vocab_size: int | None = None) -> None:
        """Compile the vocabulary, which takes tenths of a second.

        Args:
            tokenizer: The vocabulary.
            context: Context whose lines are the only allowed action lines; see `for_context`. None allows all lines.
            vocab_size: Length of the masks, for models with more ids than the tokenizer. Defaults to its size.

        Raises:
            ValueError: The vocabulary lacks a special token of the trace format, `vocab_size` is smaller than the
                tokenizer's, or the context has no lines.
        """
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        if self.vocab_size < tokenizer.vocab_size:
            raise ValueError(f"masks of {self.vocab_size} tokens for a tokenizer of {tokenizer.vocab_size}")
        self._native = _native.TraceGrammar(tokenizer._native)
        if context is not None:
            self._native = self._native.with_lines(source_lines(context))

    def for_context(self, context: str) -> TraceGrammar:
        """Return this grammar with action lines restricted to the lines of a context.

        The mark `# << START_OF_TRACE` may be present or absent. An empty line remains allowed: it stands for an unknown
        line, as for instructions that belong to no line. The vocabulary is not compiled again.

        Raises:
            ValueError: The context has no lines.
        """
        grammar = TraceGrammar.__new__(TraceGrammar)
        grammar.vocab_size = self.vocab_size
        grammar._native = self._native.with_lines(source_lines(context))
        return grammar

    def constraint(self, prompt: ArrayLike = ()) -> TraceConstraint:
        """Return the constraint of one generation after `prompt`.

        Args:
            prompt: Token ids that begin like a trace or with a frame, and end anywhere. They may contain anything that
                the parser accepts, even a `..` that refers to nothing and lines outside the context.

        Raises:
            ValueError: No trace continues the prompt.
        """
        return TraceConstraint(self, prompt)


class TraceConstraint:
    """A `Constraint` of one generation under a `TraceGrammar`.

    Some token is allowed until the end token, and a few tokens complete the trace from every state.
    """

    def __init__(self, grammar: TraceGrammar, prompt: ArrayLike = ()) -> None:
        """Start after `prompt`; call `TraceGrammar.constraint` instead."""
        self._native = grammar._native.constraint()
        self._native.feed(np.ascontiguousarray(prompt, np.int32))
        self._mask = np.zeros(grammar.vocab_size, bool)

    def allowed(self) -> NDArray[np.bool_]:
        """Return a bool array [vocab], true for tokens that may come next. The next call updates the same array."""
        self._native.allowed(self._mask)
        return self._mask

    def allows(self, token: int) -> bool:
        """Return whether `token` may come next."""
        return self._native.allows(token)

    def advance(self, token: int) -> None:
        """Record that `token` was appended. A supplied token may be any token allowed in a prompt.

        Raises:
            ValueError: No trace continues with the token.
        """
        self._native.advance(token)

    def feed(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        """Record that `tokens` were appended; raise the same errors as `advance`."""
        self._native.feed(np.ascontiguousarray(tokens, np.int32))
