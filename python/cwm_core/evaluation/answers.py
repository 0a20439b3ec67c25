"""Asking a model directly: prompts from templates, and the texts that it answers. Nothing it writes is run here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..tokenizer.special_tokens import STOP_TOKENS
from .problems import Problem
from .reading import answer_of_chat

if TYPE_CHECKING:
    from ..inference import Engine
    from ..tokenizer import Tokenizer

Style = Literal["completion", "chat", "reasoning"]
STYLES: tuple[Style, ...] = ("completion", "chat", "reasoning")


def load_template(name: str, required: Sequence[str], path: str | os.PathLike[str] | None = None) -> str:
    """The text of our own template of that name, or of the file `path`, which must hold `{FIELD}` for each required.

    Raises ValueError for a missing field, OSError when the file cannot be read.
    """
    file = Path(path) if path is not None else Path(__file__).parent / "prompts" / f"{name}.txt"
    text = file.read_text("utf-8")
    for field in required:
        if "{" + field + "}" not in text:
            raise ValueError(f"{file}: the template has no {{{field}}}")
    return text


def fill(template: str, **fields: object) -> str:
    """The template with each `{FIELD}` replaced; other braces, and those in what is filled in, stay as they are."""
    return re.sub("{(" + "|".join(fields) + ")}", lambda match: str(fields[match[1]]), template)


def ask(
    engine: Engine,
    texts: Sequence[str],
    style: Style,
    max_new_tokens: int,
    **sampling: Any,
) -> list[str | None]:
    """What the model answers to each text, None for nothing: after the text, or to it as the user's message of a chat.

    A completion's answer is the rest of the line. A chat's is as of `answer_of_chat`; with "reasoning", only what
    follows the reasoning counts. `sampling` goes to `engine.generate`.

    Raises ValueError for an unknown style, and when the vocabulary lacks special tokens that are needed.
    """
    tokenizer: Tokenizer = engine.tokenizer
    prompts = question_prompts(tokenizer, texts, style)
    stops = tokenizer.stop_tokens
    if not stops:
        raise ValueError(f"this vocabulary has no token that ends an answer; expected one of {', '.join(STOP_TOKENS)}")
    if style == "completion":
        on_token = _end_at(_newlines(tokenizer), stops[0])
        generations = engine.generate(prompts, max_new_tokens, stops, on_token=on_token, **sampling)
        return [_text(tokenizer, g.ids).partition("\n")[0].strip() or None for g in generations]
    generations = engine.generate(prompts, max_new_tokens, stops, **sampling)
    return [answer_of_chat(_text(tokenizer, g.ids), reasoning=style == "reasoning") for g in generations]


def question_prompts(tokenizer: Tokenizer, texts: Sequence[str], style: Style) -> list[np.ndarray]:
    """Return the prompt that `ask` gives the model for each text, int32 [n]; raise the same errors as `ask`."""
    from ..inference.prompts import chat_prompt, completion_prompt

    if style == "completion":
        return [completion_prompt(tokenizer, text) for text in texts]
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    return [chat_prompt(tokenizer, text, reasoning=style == "reasoning") for text in texts]


def answer_logprobs(engine: Engine, prompts: Iterable[np.ndarray], answers: Sequence[np.ndarray]) -> np.ndarray:
    """The log probability in nats of each answer's tokens after each prompt, float64 [prompts, answers]."""
    import torch

    model = engine.model
    device = model.lm_head.weight.device
    rows = []
    with torch.inference_mode():
        for prompt in prompts:
            row = []
            for answer in answers:
                tokens = torch.tensor([*prompt.tolist(), *answer.tolist()], device=device)
                hidden = model.hidden(tokens[:-1])[len(prompt) - 1 :]
                logprobs = model.lm_head(hidden).float().log_softmax(-1)
                row.append(float(logprobs.gather(1, tokens[len(prompt) :, None]).double().sum()))
            rows.append(row)
    return np.array(rows, np.float64).reshape(-1, len(answers))


def fields_of(problem: Problem) -> dict[str, str]:
    """What a template may ask for of a problem."""
    return {"code": problem.code.strip("\n"), "input": problem.input, "output": problem.output or ""}


def _newlines(tokenizer: Tokenizer) -> frozenset[int]:
    found = set()
    for id in range(tokenizer.vocab_size):
        with suppress(ValueError):  # of a gap between ordinary and special tokens
            if b"\n" in tokenizer.token_to_bytes(id):
                found.add(id)
    return frozenset(found)


def _end_at(ids: frozenset[int], stop: int) -> Callable[[int, list[int]], list[int] | None]:
    return lambda _, generated: [stop] if generated[-1] in ids else None


def _text(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The text of generated ids, special tokens of chats and documents left out; up to an id that is no token."""
    kept = [int(id) for id in ids if int(id) not in tokenizer.stop_tokens]
    try:
        return tokenizer.decode(kept)
    except ValueError:  # the model has more rows than the vocabulary has tokens
        return ""
