"""Read traces as training documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.documents import DocumentKind, Row
from ..data.traces import TrainingDocument, encode_for_training, training_texts
from ..support.tables import is_table
from ..tokenizer import Tokenizer
from ..trace import StoredTrace
from .traces import STORE, TRACE, read_traces, trace_from_row

_BEGIN = b"CWMTRACE"  # of a stored trace


class TraceKind(DocumentKind[StoredTrace]):
    """Traces: single files, stores, and the rows that `cwm export` writes.

    The loss is on the tokens after the first frame. The source is the `source` of the trace's metadata.
    """

    columns = ("trace", "key", "metadata")
    endings = (TRACE, STORE)

    def has_file(self, path: Path) -> bool:
        """Return whether the file holds traces. A single trace may have any name but that of a table."""
        if super().has_file(path):
            return True
        if is_table(path) or (path.exists() and not path.is_file()):  # the start of a FIFO can be read only once
            return False
        with open(path, "rb") as file:
            return file.read(len(_BEGIN)) == _BEGIN

    def read_file(self, path: Path) -> Iterator[tuple[str, StoredTrace]]:
        """Yield the traces of a file, each with the file's path."""
        return ((str(path), entry) for entry in read_traces(path))

    def read_row(self, row: Row, where: str) -> StoredTrace:
        """Return the trace in a row that `cwm export` wrote."""
        return trace_from_row(dict(row), where)

    def source(self, content: StoredTrace, row: Row) -> str | None:
        """Return the source in the trace's metadata."""
        source = content.metadata.get("source")
        return source if isinstance(source, str) else None

    def encode(self, tokenizer: Tokenizer, content: StoredTrace) -> TrainingDocument:
        """Encode the trace, as `encode_for_training` does."""
        return encode_for_training(tokenizer, content.trace)

    def texts(self, content: StoredTrace) -> Iterable[str]:
        """Yield the parts of the trace that are encoded separately."""
        return training_texts(content.trace)
