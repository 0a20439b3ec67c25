"""Code world models: record program executions, turn them into tokens, train on them, predict and verify them."""

from importlib import import_module
from types import ModuleType

# These need PyTorch, which `import cwm_core` must not: they are imported when first named.
_LAZY = ("inference", "model", "training")


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage on first use, so that `cwm_core.model` works after `import cwm_core`."""
    if name in _LAZY:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
