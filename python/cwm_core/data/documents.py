"""What training reads, as it lies in files: traces, texts, chats and trajectories; which tokens of each are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..environments.encoding import encode_trajectory
from ..environments.trajectories import Trajectory, TrajectoryReader, is_trajectory_file
from ..formats.traces import read_table, read_traces, trace_from_row
from ..support.jsonl import STDIN, is_jsonl
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import BEGIN_OF_TEXT, END_OF_TEXT
from ..trace import StoredTrace
from .traces import TrainingDocument, encode_for_training, training_texts

_COLUMNS = ("text", "messages", "source", "key", "metadata", "trace")


class Text(NamedTuple):
    """A text: all of it is learned."""

    text: str


class Chat(NamedTuple):
    """A chat, as `Tokenizer.encode_chat` takes it: what the assistant says is learned."""

    messages: list[dict[str, str]]


class Item(NamedTuple):
    """One document before it is tokens, its source, and where it is."""

    content: StoredTrace | Text | Chat | Trajectory
    source: str
    where: str


def read_items(file: Path) -> Iterator[Item]:
    """Go through the documents of a file: a stored trace, a store of traces, trajectories, or rows of JSONL or Parquet.

    Of trajectories, those of rollouts that failed are left out. A row has `messages`, a chat; or `trace`, as `cwm
    export` writes it; or else `text`. The source of a trace in a store or row is that of its metadata, and of other
    rows the string `source`; where there is none, and for trajectories, it is the name of the folder that the file lies
    in.

    Raises OSError, and ValueError, saying where, for what is damaged or none of these.
    """
    is_stdin = str(file) == STDIN
    folder = "stdin" if is_stdin else file.resolve().parent.name
    if file.suffix != ".parquet" and not is_jsonl(file):
        for entry in read_traces(file):
            yield Item(entry, _source(entry.metadata, folder), str(file))
        return
    if file.suffix == ".jsonl" and is_trajectory_file(file):
        for trajectory in TrajectoryReader(file):
            if trajectory.failure is None:
                yield Item(trajectory, folder, f"{file}, trajectory {trajectory.name}")
        return
    for where, row in read_table(file, _COLUMNS):
        if row.keys() == {"crc32", "trajectory"}:  # of a file that is compressed, which `TrajectoryReader` cannot read
            trajectory = _trajectory(row["trajectory"], where)
            if trajectory.failure is None:
                yield Item(trajectory, folder, where)
        elif row.get("messages") is not None:
            yield Item(Chat(_messages(row["messages"], where)), _source(row, folder), where)
        elif row.get("trace") is not None:
            entry = trace_from_row(row, where)
            yield Item(entry, _source(entry.metadata, folder), where)
        elif isinstance(row.get("text"), str):
            yield Item(Text(row["text"]), _source(row, folder), where)
        else:
            raise ValueError(f"{where}: there is no 'messages', 'trace' or 'text'")


def encode_item(tokenizer: Tokenizer, item: Item, *, seed: int = 0, observations: float = 0.5) -> TrainingDocument:
    """Tokens, loss mask and spans of a document; raises ValueError, saying where it is, for one that has none.

    A text is put between `<|begin_of_text|>` and `<|end_of_text|>`, as far as the vocabulary has them. `seed` and
    `observations` are for `encode_trajectory`.
    """
    try:
        match item.content:
            case Text(text):
                return _encode_text(tokenizer, text)
            case Chat(messages):
                return TrainingDocument(*tokenizer.encode_chat(messages), {})
            case Trajectory() as trajectory:
                return TrainingDocument(*encode_trajectory(tokenizer, trajectory, seed=seed, observations=observations))
            case StoredTrace(trace=trace):
                return encode_for_training(tokenizer, trace)
    except ValueError as error:
        raise ValueError(f"{item.where}: {error}") from None


def item_texts(item: Item) -> Iterator[str]:
    """The texts of a document that are encoded each by itself, for `Tokenizer.train`."""
    match item.content:
        case Text(text):
            yield text
        case Chat(messages):
            yield from (message["content"] for message in messages)
        case Trajectory() as trajectory:
            yield from (message["content"] for message in trajectory.conversation())
        case StoredTrace(trace=trace):
            yield from training_texts(trace)


def _encode_text(tokenizer: Tokenizer, text: str) -> TrainingDocument:
    special = tokenizer.special_tokens
    begin, end = (
        np.array([special[name]] if name in special else [], np.int32) for name in (BEGIN_OF_TEXT, END_OF_TEXT)
    )
    ids = np.concatenate([begin, tokenizer.encode(text), end])
    return TrainingDocument(ids, np.ones(len(ids), np.bool_), {})


def _source(values: dict[str, Any], default: str) -> str:
    source = values.get("source")
    return source if isinstance(source, str) else default


def _trajectory(value: Any, where: str) -> Trajectory:
    try:
        return Trajectory.from_json(json.dumps(value).encode())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _messages(value: Any, where: str) -> list[dict[str, str]]:
    """Messages without the keys that are null, as Parquet has them for all that any message has."""
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{where}: messages is no list of objects")
    messages = [{key: part for key, part in message.items() if part is not None} for message in value]
    if not all(isinstance(message.get("content"), str) for message in messages):
        raise ValueError(f"{where}: a message has no content that is a string")
    return messages
