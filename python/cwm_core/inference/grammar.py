"""The grammar of traces over a vocabulary: which tokens keep a generation well formed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cwm_core import _native

from ..tokenizer import Tokenizer
from ..trace import source_lines


class TraceGrammar:
    """What a trace may look like in the tokens of a vocabulary. Compiled once; immutable; shared by constraints.

    A token sequence is well formed exactly if `Tokenizer.parse_trace` reads it as complete and without an error, in
    whatever tokens its texts are cut, and if each `..` has a value to refer to: in a LINE frame, for a variable of the
    activation's previous CALL or LINE frame, or as the pair ``"..": ".."`` that stands for the variables left out.
    """

    def __init__(self, tokenizer: Tokenizer, context: str | None = None, *, vocab_size: int | None = None) -> None:
        """Compile the vocabulary, in tenths of a second; with a `context`, hold action lines to its lines.

        `vocab_size` is the length of masks, for models with more ids than the tokenizer; None stands for its own.

        Raises ValueError when the vocabulary lacks a special token of the trace format, for a `vocab_size` below the
        tokenizer's, or as `for_context`.
        """
        self.vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        if self.vocab_size < tokenizer.vocab_size:
            raise ValueError(f"masks of {self.vocab_size} tokens for a tokenizer of {tokenizer.vocab_size}")
        self._native = _native.TraceGrammar(tokenizer._native)
        if context is not None:
            self._native = self._native.with_lines(source_lines(context))

    def for_context(self, context: str) -> TraceGrammar:
        """This grammar with action lines held to those of a context, with or without its ``# << START_OF_TRACE``.

        An empty line remains allowed: it stands for one that is not known, as of instructions that come from no line.
        The vocabulary is not compiled again. Raises ValueError for a context without lines.
        """
        grammar = TraceGrammar.__new__(TraceGrammar)
        grammar.vocab_size = self.vocab_size
        grammar._native = self._native.with_lines(source_lines(context))
        return grammar

    def constraint(self, prompt: ArrayLike = ()) -> TraceConstraint:
        """The constraint of one generation after the tokens of `prompt`, which may end anywhere in a trace.

        A prompt begins as a trace does, or with a frame. It may hold what only the parser takes: a `..` that refers to
        nothing, and lines that are not of the context.

        Raises ValueError for a prompt that no trace begins with.
        """
        return TraceConstraint(self, prompt)


class TraceConstraint:
    """One generation under a `TraceGrammar`; a `Constraint` of the engine.

    Until the end token some token is allowed, and from everywhere a few tokens lead to the end of the trace.
    """

    def __init__(self, grammar: TraceGrammar, prompt: ArrayLike = ()) -> None:
        """See `TraceGrammar.constraint`, which makes them."""
        self._native = grammar._native.constraint()
        self._native.feed(np.ascontiguousarray(prompt, np.int32))
        self._mask = np.zeros(grammar.vocab_size, bool)

    def allowed(self) -> NDArray[np.bool_]:
        """Bool [vocab]: true where a token may come next. The next call changes the same array."""
        self._native.allowed(self._mask)
        return self._mask

    def allows(self, token: int) -> bool:
        """Whether this token may come next: its item of `allowed`."""
        return self._native.allows(token)

    def advance(self, token: int) -> None:
        """Go past a token that was appended. One that was supplied may be any that a prompt could go on with.

        Raises ValueError for a token after which nothing is well formed.
        """
        self._native.advance(token)

    def feed(self, tokens: Sequence[int] | NDArray[np.integer]) -> None:
        """Go past several tokens; raises as `advance`."""
        self._native.feed(np.ascontiguousarray(tokens, np.int32))
