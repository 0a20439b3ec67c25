"""Files of JSON objects, one a line, that others wrote."""

from cwm_core.support.jsonl import read_rows

__all__ = ["read_rows"]
