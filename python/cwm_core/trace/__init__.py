"""Record executions, read and write traces, and reduce their source context.

Imports only the native extension, so that this folder can be copied into a container on its own.
"""

from .._native import ParseErrorKind
from .kinds import Event, TraceOutcome, Truncation
from .recorder import (
    MARK,
    ParsedTrace,
    Recorder,
    RecordingLimit,
    Trace,
    call_context,
    finish,
    last_return,
    record,
    record_source,
    source_context,
    source_lines,
)
from .store import StoredTrace, TraceReader, TraceWriter

__all__ = [
    "MARK",
    "Event",
    "ParseErrorKind",
    "ParsedTrace",
    "Recorder",
    "RecordingLimit",
    "StoredTrace",
    "Trace",
    "TraceOutcome",
    "TraceReader",
    "TraceWriter",
    "Truncation",
    "call_context",
    "finish",
    "last_return",
    "record",
    "record_source",
    "source_context",
    "source_lines",
]
