r"""The chat format of the Code World Model, as token ids and as a template for `transformers`.

A chat is `<|begin_of_text|>` followed by messages, each
`<|start_header_id|>ROLE<|end_header_id|>\n\nCONTENT<|eot_id|>`.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cwm_core.tokenizer.special_tokens import (
    BEGIN_OF_TEXT,
    END_HEADER_ID,
    EOT_ID,
    REASONING_THINKING_END,
    REASONING_THINKING_START,
    START_HEADER_ID,
)

if TYPE_CHECKING:
    from cwm_core.tokenizer.tokenizer import Tokenizer

REASONING_SYSTEM_PROMPT = (
    "You are a helpful AI assistant. You always reason before responding, using the following format:\n\n"
    "<think>\nyour internal reasoning\n</think>\nyour external response"
)
"""The system prompt that turns reasoning on (source: prompting guide of the Code World Model)."""

_REASONING_TOKENS = frozenset({REASONING_THINKING_START, REASONING_THINKING_END})

# The released code cuts longer texts into pieces of this many characters and encodes each piece separately.
_PIECE_CHARS = 400_000

CHAT_TEMPLATE = r"""
{{- '<|begin_of_text|>' }}
{%- if tools %}
    {{- raise_exception('tools are described in the system message') }}
{%- endif %}
{%- if enable_thinking and not (messages and messages[0].role == 'system') %}
    {{- '<|start_header_id|>system<|end_header_id|>\n\n' ~ REASONING_SYSTEM_PROMPT ~ '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- set role = message.role %}
    {%- if role == 'tool' and message.name %}
        {%- set role = 'tool: ' ~ message.name %}
    {%- endif %}
    {%- if role not in ('system', 'user', 'assistant') and not (role.startswith('tool: ') and role[6:].strip()) %}
        {{- raise_exception('message ' ~ loop.index0 ~ ' has the unknown role ' ~ role) }}
    {%- endif %}
    {%- if message.tool_calls %}
        {{- raise_exception('message ' ~ loop.index0 ~ ' has tool_calls; calls are part of the content') }}
    {%- endif %}
    {{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' }}
    {%- if role == 'assistant' %}
        {%- set content = message.content %}
        {%- if message.reasoning_content %}
            {%- set content = '<think>\n' ~ message.reasoning_content.strip() ~ '\n</think>\n' ~ content.lstrip() %}
        {%- endif %}
        {%- if add_generation_prompt and loop.last %}
            {{- content }}
        {%- else %}
            {%- generation %}
                {{- content.strip() ~ '<|eot_id|>' }}
            {%- endgeneration %}
        {%- endif %}
    {%- elif role.startswith('tool: ') %}
        {{- message.content ~ '<|eot_id|>' }}
    {%- else %}
        {{- message.content.strip() ~ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not (messages and messages[-1].role == 'assistant') %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' ~ ('<think>\n' if enable_thinking else '') }}
{%- endif %}
""".replace("REASONING_SYSTEM_PROMPT", json.dumps(REASONING_SYSTEM_PROMPT)).lstrip()
"""The chat format as a Jinja template, with the `generation` blocks from which `transformers` makes the loss mask."""


def encode_chat(
    tokenizer: "Tokenizer", messages: Iterable[Mapping[str, str]], *, reasoning: bool, add_generation_prompt: bool
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Implement `Tokenizer.encode_chat`, which documents the arguments."""
    chat = [_role_and_content(number, message) for number, message in enumerate(messages)]
    if reasoning and not (chat and chat[0][0] == "system"):
        chat.insert(0, ("system", REASONING_SYSTEM_PROMPT))
    prompt = None
    if add_generation_prompt:
        is_continued = bool(chat) and chat[-1][0] == "assistant"
        prompt = chat.pop()[1] if is_continued else "<think>\n" if reasoning else ""

    encoder = _Encoder(tokenizer)
    encoder.add_special(BEGIN_OF_TEXT)
    for role, content in chat:
        encoder.add_message(role, content)
    if prompt is not None:
        encoder.add_header("assistant")
        encoder.add_text(prompt, reasoning_tokens=True)
    return np.concatenate(encoder.ids), np.concatenate(encoder.mask)


class _Encoder:
    """Builds the tokens and the loss mask of one chat."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._special = tokenizer.special_tokens
        self.ids: list[NDArray[np.int32]] = []
        self.mask: list[NDArray[np.bool_]] = []

    def add_message(self, role: str, content: str) -> None:
        self.add_header(role)
        is_assistant = role == "assistant"
        content = content if role.startswith("tool: ") else content.strip()
        self.add_text(content, reasoning_tokens=is_assistant, in_loss=is_assistant)
        self.add_special(EOT_ID, in_loss=is_assistant)

    def add_header(self, role: str) -> None:
        self.add_special(START_HEADER_ID)
        self.add_text(role)
        self.add_special(END_HEADER_ID)
        self.add_text("\n\n")

    def add_special(self, name: str, *, in_loss: bool = False) -> None:
        if name not in self._special:
            raise ValueError(f"the vocabulary lacks the special token {name!r}, which a chat needs")
        self._add(np.array([self._special[name]], np.int32), in_loss)

    def add_text(self, text: str, *, reasoning_tokens: bool = False, in_loss: bool = False) -> None:
        allowed = _REASONING_TOKENS & self._special.keys() if reasoning_tokens else frozenset()
        for start in range(0, len(text), _PIECE_CHARS):
            piece = text[start : start + _PIECE_CHARS]
            self._add(self._tokenizer.encode(piece, allowed_special=allowed), in_loss)

    def _add(self, ids: NDArray[np.int32], in_loss: bool) -> None:
        self.ids.append(ids)
        self.mask.append(np.full(len(ids), in_loss))


def _role_and_content(number: int, message: Mapping[str, str]) -> tuple[str, str]:
    """Return role and content as the chat format writes them: tool name in the role, reasoning in the content."""
    if not isinstance(message, Mapping):
        raise TypeError(f"message {number}: expected a mapping with role and content, got {type(message).__name__}")
    role = message.get("role")
    optional = {"tool": "name", "assistant": "reasoning_content"}.get(role) if isinstance(role, str) else None
    if not {"role", "content"} <= message.keys() <= {"role", "content", optional}:
        also = f" (and optionally {optional})" if optional else ""
        raise ValueError(f"message {number}: expected the keys role and content{also}, got {sorted(message)}")
    for key, value in message.items():
        if not isinstance(value, str):
            raise ValueError(f"message {number}: {key}: expected a string, got {type(value).__name__}")

    role, content = message["role"], message["content"]
    if role == "tool" and "name" in message:
        role = f"tool: {message['name']}"
    if role == "assistant" and message.get("reasoning_content"):
        content = f"<think>\n{message['reasoning_content'].strip()}\n</think>\n{content.lstrip()}"
    if role not in ("system", "user", "assistant") and not (role.startswith("tool: ") and role[6:].strip()):
        raise ValueError(f"message {number}: unknown role {role!r}")
    return role, content
