"""Define how a benchmark passes its measurements to the report.

A hot path is one `benchmark.group`. In it, `benchmark.extra_info["implementation"]` is "cwm_core" or a rival's name;
`bytes`, `tokens` and `events` beside it count what one call does, so that times become rates.
"""

from importlib.util import find_spec

import pytest


def has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Return whether nothing is measured (`--benchmark-disable`), so that small inputs do."""
    return request.config.getoption("benchmark_disable")


collect_ignore = [] if has_gpu() else ["gpu"]
