"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from cwm_core.data import PackedLoader, Shards, ShardWriter
from cwm_core.tokenizer import Tokenizer
from cwm_core.trace import ParsedTrace, Recorder, RecordingLimit, Trace, record, record_source

__all__ = [
    "PackedLoader",
    "ParsedTrace",
    "Recorder",
    "RecordingLimit",
    "ShardWriter",
    "Shards",
    "Tokenizer",
    "Trace",
    "record",
    "record_source",
]
