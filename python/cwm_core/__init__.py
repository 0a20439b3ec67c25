"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from importlib import import_module
from types import ModuleType

from cwm_core.data import PackedLoader, Shards, ShardWriter
from cwm_core.store import TraceReader, TraceWriter
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
    "TraceReader",
    "TraceWriter",
    "record",
    "record_source",
]

# Some of these need PyTorch, which `import cwm_core` must not: they are imported when first named.
_LAZY = ("corpus", "environments", "evaluation", "inference", "model", "sandbox", "training", "view")


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage on first use, so that `cwm_core.model` works after `import cwm_core`."""
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
