"""A fixture that stores a trace of each call that a test makes inside its block."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import cwm_core as cwm
import orders
import pytest

STORE = Path("orders.cwmtraces")


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[None]]:
    """Return a context manager that records the code of `orders`."""

    @contextmanager
    def record() -> Iterator[None]:
        with cwm.Recorder(scope=[orders.__file__]) as traces:
            yield
        with cwm.TraceWriter(STORE, append=True) as writer:
            for trace in traces:
                writer.add(trace, source=request.node.name)

    return record
