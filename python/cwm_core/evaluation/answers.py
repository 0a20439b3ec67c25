"""Ask a model questions from templates, and extract its answers. This module never runs what the model writes."""

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
"""Form of a question: a text to complete, a chat message, or a chat message with reasoning."""
STYLES: tuple[Style, ...] = ("completion", "chat", "reasoning")


def load_template(name: str, required: Sequence[str], path: str | os.PathLike[str] | None = None) -> str:
    """Return the text of a template.

    Args:
        name: Name of a built-in template.
        required: Names of the fields that the template must contain, as `{FIELD}`.
        path: File to use instead of the built-in template.

    Raises:
        ValueError: A field is missing.
        OSError: The file cannot be read.
    """
    file = Path(path) if path is not None else Path(__file__).parent / "prompts" / f"{name}.txt"
    text = file.read_text("utf-8")
    for field in required:
        if "{" + field + "}" not in text:
            raise ValueError(f"{file}: the template lacks the field {{{field}}}")
    return text


def fill(template: str, **fields: object) -> str:
    """Return the template with each `{FIELD}` replaced. Other braces and those in values stay unchanged."""
    return re.sub("{(" + "|".join(fields) + ")}", lambda match: str(fields[match[1]]), template)


def ask(
    engine: Engine,
    texts: Sequence[str],
    style: Style,
    max_new_tokens: int,
    **sampling: Any,
) -> list[str | None]:
    """Return the model's answer to each text, or None.

    Args:
        engine: An engine with a tokenizer.
        texts: The questions.
        style: "completion" takes the rest of the line after the text as the answer. "chat" sends the text as a user
            message and extracts the answer with `answer_of_chat`. "reasoning" switches reasoning on and reads only the
            text after it.
        max_new_tokens: Maximum number of tokens in an answer.
        sampling: Further arguments of `Engine.generate`.

    Raises:
        ValueError: The style is unknown, or the vocabulary lacks special tokens that it needs.
    """
    tokenizer: Tokenizer = engine.tokenizer
    prompts = question_prompts(tokenizer, texts, style)
    stops = tokenizer.stop_tokens
    if not stops:
        raise ValueError(f"the vocabulary lacks a token that ends an answer; expected one of {', '.join(STOP_TOKENS)}")
    if style == "completion":
        on_token = _end_at(newline_tokens(tokenizer), stops[0])
        generations = engine.generate(prompts, max_new_tokens, stops, on_token=on_token, **sampling)
        return [text_of(tokenizer, g.ids).partition("\n")[0].strip() or None for g in generations]
    generations = engine.generate(prompts, max_new_tokens, stops, **sampling)
    return [answer_of_chat(text_of(tokenizer, g.ids), reasoning=style == "reasoning") for g in generations]


def question_prompts(tokenizer: Tokenizer, texts: Sequence[str], style: Style) -> list[np.ndarray]:
    """Return the prompt that `ask` gives the model for each text, int32 [n]; raise the same errors as `ask`."""
    from ..inference.prompts import chat_prompt, completion_prompt

    if style == "completion":
        return [completion_prompt(tokenizer, text) for text in texts]
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; expected one of {', '.join(STYLES)}")
    return [chat_prompt(tokenizer, text, reasoning=style == "reasoning") for text in texts]


def answer_logprobs(engine: Engine, prompts: Iterable[np.ndarray], answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the log probability in nats of each answer after each prompt, float64 [prompts, answers]."""
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
    """Return the fields of a problem that templates can contain."""
    return {"code": problem.code.strip("\n"), "input": problem.input, "output": problem.output or ""}


def newline_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that contain a line end, which end an answer of style "completion"."""
    found = set()
    for id in range(tokenizer.vocab_size):
        with suppress(ValueError):  # an id without a token
            if b"\n" in tokenizer.token_to_bytes(id):
                found.add(id)
    return frozenset(found)


def _end_at(ids: frozenset[int], stop: int) -> Callable[[int, list[int]], list[int] | None]:
    return lambda _, generated: [stop] if generated[-1] in ids else None


def text_of(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Return the text of generated ids without stop tokens; an empty string if an id has no token."""
    kept = [int(id) for id in ids if int(id) not in tokenizer.stop_tokens]
    try:
        return tokenizer.decode(kept)
    except ValueError:  # the model has more rows than the vocabulary has tokens
        return ""
