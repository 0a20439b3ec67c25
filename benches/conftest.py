"""How a benchmark tells the report what it measured.

A hot path is one `benchmark.group`; in it, the benchmark whose name or parameter has the word `ours` or `cwm` is this
project's and every other one a rival. `benchmark.extra_info` holds what one call does, so that times become rates:
`bytes`, `tokens` or `events`, each a count.
"""

from importlib.util import find_spec


def has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


collect_ignore = [] if has_gpu() else ["gpu"]
