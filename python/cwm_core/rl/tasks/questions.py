"""Tasks that ask a question in text and judge the text of the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from ...evaluation.answers import STYLES, Style, newline_tokens, question_prompts, text_of
from ...tokenizer import Tokenizer
from .protocol import Reward, outcome

Item = TypeVar("Item")


class QuestionTask(ABC, Generic[Item]):
    """A single turn: `question` makes the text of the prompt, and `judge` the reward of the answer's text."""

    def __init__(self, tokenizer: Tokenizer, *, style: Style, max_tokens: int, name: str) -> None:
        """Set how questions are asked.

        Args:
            tokenizer: The model's vocabulary.
            style: Form of the question; see `evaluation.answers.ask`. In style "completion" an answer ends at the end
                of the line.
            max_tokens: Maximum number of tokens of an answer.
            name: Name in metrics.

        Raises:
            ValueError: The style is unknown, or the vocabulary lacks a token that ends an answer.
        """
        if style not in STYLES:
            raise ValueError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
        self.name, self.max_tokens, self.style = name, max_tokens, style
        self.stop_tokens = frozenset(tokenizer.stop_tokens)
        if not self.stop_tokens:
            raise ValueError("the vocabulary lacks a token that ends an answer")
        if style == "completion":
            self.stop_tokens |= newline_tokens(tokenizer)
        self._tokenizer = tokenizer

    @abstractmethod
    def question(self, item: Item) -> str:
        """Return the text of the question."""

    @abstractmethod
    def judge(self, item: Item, text: str) -> Reward:
        """Return the reward of the text of an answer. Raise only if the machine failed."""

    def prompt(self, item: Item) -> list[int]:
        """See `RLTask.prompt`."""
        prompt: list[int] = question_prompts(self._tokenizer, [self.question(item)], self.style)[0].tolist()
        return prompt

    def score(self, item: Item, tokens: Sequence[int]) -> Reward:
        """See `RLTask.score`. An answer that a limit cut is wrong."""
        if not tokens or tokens[-1] not in self.stop_tokens:
            return outcome(False, "format: the answer does not end")
        return self.judge(item, text_of(self._tokenizer, tokens))
