"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from cwm_core.trace import ParsedTrace, Recorder, RecordingLimit, Trace, record, record_source

__all__ = ["ParsedTrace", "Recorder", "RecordingLimit", "Trace", "record", "record_source"]
