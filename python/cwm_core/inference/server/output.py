"""Turn the tokens of one choice into text as they arrive, and stop at stop strings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...tokenizer import Tokenizer
from ..requests import Event


class StopStrings:
    """Cut a text at the first stop string, and hold back a possible beginning of one.

    If several stop strings end at the same place, the cut is before the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Stop at the first of `stops`. The list may be empty, but the strings may not."""
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """Return the new text that is certain to come before any stop string."""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        kept = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """Return the text held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Delta:
    """The text and tokens that some events add to a choice."""

    text: str = ""
    events: list[Event] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """Number of characters that the tokens before each event completed."""
    finish_reason: str | None = None
    """Reason of the end in the words of the protocol, such as "stop"; None if the choice continues."""

    @property
    def ids(self) -> list[int]:
        """Return the token ids."""
        return [event.token for event in self.events if event.token is not None]


class Output:
    """The text of one choice."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        *,
        skip_special: bool = True,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """Start with an empty text.

        Args:
            tokenizer: The vocabulary.
            stops: Stop strings.
            skip_special: Omit special tokens instead of writing their names.
            names: Texts of special tokens that always appear, by id.
        """
        self._special = frozenset(tokenizer.special_tokens.values()) if skip_special else frozenset()
        self._names = names or {}
        self._vocab_size = tokenizer.vocab_size
        self._decoder = tokenizer.stream_decoder()
        self._stops = StopStrings(stops)
        self._chars = 0
        self.tokens = 0
        self.finish_reason: str | None = None

    def feed(self, events: Iterable[Event]) -> Delta:
        """Return the text and events that the tokens add; nothing after the end of the choice."""
        delta = Delta()
        for event in events:
            if self.finish_reason:
                break
            delta.events.append(event)
            delta.offsets.append(self._chars)
            self.tokens += 1
            # The stop token is not part of the text.
            text = "" if event.finish_reason == "stop" else self._text(event.token)
            if event.finish_reason:
                text += self._decoder.finish()
            self._chars += len(text)
            delta.text += self._stops.feed(text)
            if self._stops.found:
                self.finish_reason = "stop"
            elif event.finish_reason:
                self.finish_reason = "length" if event.finish_reason == "length" else "stop"
                delta.text += self._stops.finish()
        delta.finish_reason = self.finish_reason
        return delta

    def _text(self, token: int | None) -> str:
        if token is None or token in self._special or token >= self._vocab_size:
            return self._names.get(token, "") if token is not None else ""
        if token in self._names:
            return self._names[token]
        try:
            return self._decoder.feed(token)
        except ValueError:  # an id without a token
            return ""


def token_text(tokenizer: Tokenizer, token: int) -> bytes:
    """Return the bytes of one token; no bytes for an unknown id."""
    try:
        return tokenizer.token_to_bytes(token)
    except (ValueError, OverflowError):
        return b""
