"""Read rows of JSONL and Parquet files as dictionaries."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from typing import Any

from .._native import DamagedFileError
from .jsonl import ENDINGS, is_jsonl, read_rows

TABLE_ENDINGS = (*ENDINGS, ".parquet")
"""File extensions that `read_table` supports, in any case."""


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether a path names a JSONL file, compressed or not, a Parquet file, or standard input."""
    return is_jsonl(path) or os.fspath(path).lower().endswith(".parquet")


def read_table(path: str | os.PathLike[str], columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file with their places, such as "texts.jsonl, line 3".

    Args:
        path: A JSONL or Parquet file, or `-` for JSONL on standard input.
        columns: Columns to read of a Parquet file. Rows of JSONL are yielded whole.

    Raises:
        DamagedFileError: The file is damaged.
        ValueError: The file extension is not supported.
        OSError: The file cannot be read.
        ModuleNotFoundError: The file needs pyarrow or a Zstandard reader, and it is not installed.
    """
    if is_jsonl(path):
        return ((f"{os.fspath(path)}, line {number}", row) for number, row in read_rows(path))
    if is_table(path):
        return _parquet_rows(path, columns)
    raise ValueError(f"{os.fspath(path)}: the name must end in {' or '.join(TABLE_ENDINGS)}")


def _parquet_rows(path: str | os.PathLike[str], columns: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            present = [name for name in columns if name in file.schema_arrow.names]
            rows = (row for batch in file.iter_batches(batch_size=256, columns=present) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield f"{os.fspath(path)}, row {number}", row
    except pa.ArrowInvalid as error:
        raise DamagedFileError(f"{os.fspath(path)}: {error}") from None
