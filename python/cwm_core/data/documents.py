"""Read training documents from files: the registry of document kinds, and the kinds for texts and chats.

A document kind recognizes a file or a row of a file, reads it, and encodes what it read. The kinds of traces and
trajectories are in the packages that own those: `cwm_core.formats.documents` and `cwm_core.environments.documents`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from .._native import DamagedFileError
from ..support.files import StrPath, files_in
from ..support.imports import entry_point_objects, import_object
from ..support.jsonl import STDIN, type_of_json
from ..support.tables import TABLE_ENDINGS, is_table, read_table
from ..tokenizer import Tokenizer
from ..tokenizer.special_tokens import BEGIN_OF_TEXT, END_OF_TEXT
from .traces import TrainingDocument

ENTRY_POINTS = "cwm_core.document_kinds"
"""Group of entry points by which an installed package adds document kinds."""

BUILT_IN = (
    "cwm_core.environments.documents:TrajectoryKind",
    "cwm_core.data.documents:ChatKind",
    "cwm_core.formats.documents:TraceKind",
    "cwm_core.data.documents:TextKind",
)
"""Import paths of the kinds that `document_kinds` always has. A row with several columns is of the first that fits."""

Row = Mapping[str, Any]
Content = TypeVar("Content")


class DocumentKind(ABC, Generic[Content]):
    """A kind of training document. Subclass it to train on documents of your own.

    A subclass defines `encode` and `texts`, and reads rows of JSONL and Parquet files (`columns` and `read_row`), files
    of its own (`endings` and `read_file`), or both.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    """Columns that a row of this kind may have. The first one marks the kind: it is there, and not null."""
    endings: ClassVar[tuple[str, ...]] = ()
    """Endings of the names of files that hold only documents of this kind, such as `.cwmtraces`. In lowercase; a name
    may have them in any case."""

    def has_file(self, path: Path) -> bool:
        """Return whether `read_file` reads this file."""
        return path.name.lower().endswith(self.endings)

    def read_file(self, path: Path) -> Iterator[tuple[str, Content]]:
        """Yield the documents of a file of this kind with their places, for error messages.

        Raises:
            ValueError: The file is damaged.
            OSError: The file cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} reads rows, not files")

    def has_row(self, row: Row) -> bool:
        """Return whether `read_row` reads this row."""
        return bool(self.columns) and row.get(self.columns[0]) is not None

    def read_row(self, row: Row, where: str) -> Content | None:
        """Return the document in a row of a JSONL or Parquet file, or None to leave the row out.

        Args:
            row: Values by column.
            where: Place of the row, for error messages.

        Raises:
            ValueError: The row is malformed.
        """
        raise NotImplementedError(f"{type(self).__name__} reads files, not rows")

    def source(self, content: Content, row: Row) -> str | None:
        """Return the document's source, or None for the name of the folder that holds the file.

        Args:
            content: The document.
            row: The row that it comes from. Empty if it comes from a file of this kind.
        """
        source = row.get("source")
        return source if isinstance(source, str) else None

    @abstractmethod
    def encode(self, tokenizer: Tokenizer, content: Content) -> TrainingDocument:
        """Return the tokens, loss mask, and spans of a document.

        Raises:
            ValueError: The document cannot be encoded.
        """

    @abstractmethod
    def texts(self, content: Content) -> Iterable[str]:
        """Yield the texts that `encode` encodes separately, to train a vocabulary on."""


class Item(NamedTuple):
    """A document that is not yet encoded."""

    kind: DocumentKind[Any]
    """Kind that read the document and encodes it."""
    content: Any
    """The document, of the type that its kind reads."""
    source: str
    """Source that the document is counted under."""
    where: str
    """Place of the document, for error messages."""

    def encode(self, tokenizer: Tokenizer) -> TrainingDocument:
        """Return the tokens, loss mask, and spans of the document.

        Raises:
            ValueError: The document cannot be encoded. The message says where it is.
        """
        try:
            return self.kind.encode(tokenizer, self.content)
        except ValueError as error:
            raise ValueError(f"{self.where}: {error}") from None

    def texts(self) -> Iterable[str]:
        """Yield the texts of the document that are encoded separately, for `Tokenizer.train`."""
        return self.kind.texts(self.content)


def document_kinds(extra: Iterable[str | DocumentKind[Any]] = ()) -> list[DocumentKind[Any]]:
    """Return the kinds of documents to recognize, in the order in which they are tried.

    The extra kinds come first, then those that installed packages register as entry points of the group
    `cwm_core.document_kinds`, then the built-in ones. Of several instances of a class, only the first is returned, so
    that an extra kind can replace a built-in one that has other options.

    Args:
        extra: Kinds, or their import paths (`module:name`). A path names a kind, or a class or function that returns
            one when called without arguments.

    Raises:
        ValueError: An import path does not lead to a document kind.
    """
    kinds: dict[type, DocumentKind[Any]] = {}
    for given in (*extra, *entry_point_objects(ENTRY_POINTS), *BUILT_IN):
        found = import_object(given) if isinstance(given, str) else given
        kind = found if isinstance(found, DocumentKind) or not callable(found) else found()
        if not isinstance(kind, DocumentKind):
            raise ValueError(f"{given}: expected a cwm_core.data.DocumentKind, got {kind!r}")
        kinds.setdefault(type(kind), kind)
    return list(kinds.values())


def document_files(paths: Iterable[StrPath], kinds: Sequence[DocumentKind[Any]] | None = None) -> Iterator[Path]:
    """Yield the paths, with each folder replaced by the files in it that documents are read from.

    In a folder, these are the files of kinds with an ending of their own, such as traces and stores. A folder without
    such files is read for its JSONL and Parquet files, so that the records that a corpus keeps beside its stores are
    not read as documents.

    Args:
        paths: Files and folders.
        kinds: Kinds of documents to recognize (default: `document_kinds()`).

    Raises:
        FileNotFoundError: A folder has no such file.
        ValueError: Standard input is named twice.
    """
    given = [Path(path) for path in paths]
    if sum(str(path) == STDIN for path in given) > 1:
        raise ValueError(f"standard input ({STDIN}) is named more than once, but can be read only once")
    own = tuple(ending for kind in (document_kinds() if kinds is None else kinds) for ending in kind.endings)
    for path in given:
        if not path.is_dir():
            yield path
            continue
        found = files_in(path, own) or files_in(path, TABLE_ENDINGS)
        if not found:
            raise FileNotFoundError(2, f"no file in this folder is one of {_patterns(own)}", str(path))
        yield from found


def read_items(path: StrPath, kinds: Sequence[DocumentKind[Any]] | None = None) -> Iterator[Item]:
    """Yield the documents of a file.

    Args:
        path: A file that one of the kinds recognizes, a JSONL or Parquet file, or `-` for JSONL on standard input.
        kinds: Kinds of documents to recognize (default: `document_kinds()`).

    Raises:
        DamagedFileError: The file is damaged, or no kind recognizes it or one of its rows. The message says where.
        OSError: The file cannot be read.
    """
    kinds, path = document_kinds() if kinds is None else kinds, Path(path)
    folder = "stdin" if str(path) == STDIN else path.resolve().parent.name
    for kind, row, where, content in _contents(path, kinds):
        source = kind.source(content, row)
        yield Item(kind, content, folder if source is None else source, where)


def _contents(path: Path, kinds: Sequence[DocumentKind[Any]]) -> Iterator[tuple[DocumentKind[Any], Row, str, Any]]:
    for kind in kinds:
        if kind.has_file(path):
            yield from ((kind, {}, where, content) for where, content in kind.read_file(path))
            return
    if not is_table(path):
        own = tuple(ending for kind in kinds for ending in kind.endings)
        raise DamagedFileError(
            f"{path}: neither a trace nor a file named {_patterns(own)}. Rename the file, or read JSON Lines from "
            f"standard input, which is named {STDIN}"
        )
    columns = dict.fromkeys(["source", *(name for kind in kinds for name in kind.columns)])
    for where, row in read_table(path, columns.keys()):
        found = next((kind for kind in kinds if kind.has_row(row)), None)
        if found is None:
            known = [repr(kind.columns[0]) for kind in kinds if kind.columns]
            empty = [f"{name} is null" for name in known if name[1:-1] in row]
            given = ", ".join(empty or map(repr, islice(row, 10))) or "an empty row"
            raise DamagedFileError(f"{where}: expected a value in one of the columns {', '.join(known)}; got {given}")
        content = found.read_row(row, where)
        if content is not None:
            yield found, row, where, content


def _patterns(own: tuple[str, ...]) -> str:
    return ", ".join(f"*{ending}" for ending in (*own, *TABLE_ENDINGS))


class TextKind(DocumentKind[str]):
    """Texts, in the column `text`. Every token is in the loss."""

    columns = ("text",)

    def read_row(self, row: Row, where: str) -> str:
        """Return the text.

        Raises:
            ValueError: The text is not a string.
        """
        if not isinstance(row["text"], str):
            raise ValueError(f"{where}: expected 'text' to be a string, got {type_of_json(row['text'])}")
        return row["text"]

    def encode(self, tokenizer: Tokenizer, content: str) -> TrainingDocument:
        """Encode the text and wrap it in `<|begin_of_text|>` and `<|end_of_text|>` if the vocabulary has them."""
        special = tokenizer.special_tokens
        begin, end = (
            np.array([special[name]] if name in special else [], np.int32) for name in (BEGIN_OF_TEXT, END_OF_TEXT)
        )
        ids = np.concatenate([begin, tokenizer.encode(content), end])
        return TrainingDocument(ids, np.ones(len(ids), np.bool_), {})

    def texts(self, content: str) -> Iterable[str]:
        """Yield the text."""
        yield content


class ChatKind(DocumentKind[list[dict[str, str]]]):
    """Chats, in the column `messages`: see `Tokenizer.encode_chat`. The loss is on what the assistant says."""

    columns = ("messages",)

    def read_row(self, row: Row, where: str) -> list[dict[str, str]]:
        """Return the messages without keys that are null: Parquet adds every key that any message has.

        Raises:
            DamagedFileError: The messages are not a list of objects that each have a content.
        """
        value = row["messages"]
        if not isinstance(value, list):
            raise DamagedFileError(f"{where}: expected 'messages' to be a list of objects, got {type_of_json(value)}")
        for number, message in enumerate(value):
            if not isinstance(message, dict):
                raise DamagedFileError(f"{where}: message {number}: expected an object, got {type_of_json(message)}")
            if not isinstance(content := message.get("content"), str):
                given = type_of_json(content) if "content" in message else "no content"
                raise DamagedFileError(f"{where}: message {number}: expected 'content' to be a string, got {given}")
        return [{key: part for key, part in message.items() if part is not None} for message in value]

    def encode(self, tokenizer: Tokenizer, content: list[dict[str, str]]) -> TrainingDocument:
        """Encode the chat."""
        return TrainingDocument(*tokenizer.encode_chat(content), {})

    def texts(self, content: list[dict[str, str]]) -> Iterable[str]:
        """Yield the content of every message."""
        return (message["content"] for message in content)
