"""Train on documents of your own: questions whose answers alone are in the loss.

    cwm tokenize exercises.jsonl --kind document_kind:AnswerKind --tokenizer vocabulary -o shards

Each line is an object with the strings `question` and `answer`, such as {"question": "1 + 1?", "answer": "2"}.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from cwm_core import DamagedFileError, Tokenizer
from cwm_core.data import DocumentKind, TrainingDocument
from cwm_core.tokenizer.special_tokens import BEGIN_OF_TEXT, END_OF_TEXT


class AnswerKind(DocumentKind[tuple[str, str]]):
    """Questions and answers, in the columns `question` and `answer`."""

    columns = ("question", "answer")

    def read_row(self, row: Mapping[str, Any], where: str) -> tuple[str, str] | None:
        """Return the question and the answer; leave out questions without an answer."""
        question, answer = row["question"], row.get("answer")
        if answer is None:
            return None
        if not isinstance(question, str) or not isinstance(answer, str):
            raise DamagedFileError(f"{where}: expected strings 'question' and 'answer'")
        return question, answer

    def encode(self, tokenizer: Tokenizer, content: tuple[str, str]) -> TrainingDocument:
        """Encode both, with the loss on the answer and on the token that ends it."""
        begin, end = (tokenizer.special_tokens[name] for name in (BEGIN_OF_TEXT, END_OF_TEXT))
        question, answer = (tokenizer.encode(text) for text in content)
        ids = np.concatenate([[begin], question, answer, [end]]).astype(np.int32)
        start = 1 + len(question)
        spans = {"answer": np.array([[start, len(ids)]], np.int32)}
        return TrainingDocument(ids, np.arange(len(ids)) >= start, spans)

    def texts(self, content: tuple[str, str]) -> Iterable[str]:
        """Yield the texts to train a vocabulary on."""
        yield from content
