"""From the tokens of one choice to its text, as they come: characters, stop strings, log probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ...tokenizer import Tokenizer
from ..engine import Event


class StopStrings:
    """Ends a text where it first ends with one of `stops`, of which the longest is cut off.

    What may be the beginning of a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """None, or strings that are not empty."""
        self._stops = stops
        self._held = ""
        self.found = False

    def feed(self, text: str) -> str:
        """What of the text so far is certain, and new."""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass
class Delta:
    """What some tokens added to a choice."""

    text: str = ""
    events: list[Event] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    """For each event, how many characters all tokens before it completed."""
    finish_reason: str | None = None
    """"stop" or "length" where this is the last."""

    @property
    def ids(self) -> list[int]:
        """The tokens."""
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
        """Special tokens are left out, or written by name; those in `names` as it says in either case."""
        self._special = frozenset(tokenizer.special_tokens.values()) if skip_special else frozenset()
        self._names = names or {}
        self._vocab_size = tokenizer.vocab_size
        self._decoder = tokenizer.stream_decoder()
        self._stops = StopStrings(stops)
        self._chars = 0
        self.tokens = 0
        self.finish_reason: str | None = None

    def feed(self, events: Iterable[Event]) -> Delta:
        """What the tokens add; nothing after the end."""
        delta = Delta()
        for event in events:
            if self.finish_reason:
                break
            delta.events.append(event)
            delta.offsets.append(self._chars)
            self.tokens += 1
            # The token that ends the sequence is no part of its text.
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
        except ValueError:  # an id that the vocabulary leaves out
            return ""


def token_text(tokenizer: Tokenizer, token: int) -> bytes:
    """Bytes of one token; of one that the vocabulary does not know, none."""
    try:
        return tokenizer.token_to_bytes(token)
    except (ValueError, OverflowError):
        return b""
