"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cwm_core._native import CwmError, DamagedFileError
from cwm_core.trace import (
    ParsedTrace,
    ParseErrorKind,
    Recorder,
    RecordingLimit,
    Trace,
    TraceReader,
    TraceWriter,
    record,
    record_source,
)

if TYPE_CHECKING:
    from cwm_core.data import PackedLoader, Shards, ShardWriter
    from cwm_core.tokenizer import Tokenizer

    __version__: str

__all__ = [
    "CwmError",
    "DamagedFileError",
    "PackedLoader",
    "ParseErrorKind",
    "ParsedTrace",
    "Recorder",
    "RecordingLimit",
    "ShardWriter",
    "Shards",
    "Tokenizer",
    "Trace",
    "TraceReader",
    "TraceWriter",
    "__version__",
    "record",
    "record_source",
]

# Imported on first use: every pytest run where cwm-core is installed imports it, and must not pay for PyTorch or NumPy.
_LAZY = (
    "corpus",
    "data",
    "debugger",
    "environments",
    "evaluation",
    "formats",
    "inference",
    "machines",
    "model",
    "planning",
    "tokenizer",
    "training",
    "view",
)
_LAZY_NAMES = {"PackedLoader": "data", "ShardWriter": "data", "Shards": "data", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    """Import a subpackage on first use, so that `cwm_core.model` works after `import cwm_core`."""
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    if name == "__version__":
        from importlib.metadata import version

        return version("cwm-core")
    if name in _LAZY_NAMES:
        return getattr(import_module(f".{_LAZY_NAMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
