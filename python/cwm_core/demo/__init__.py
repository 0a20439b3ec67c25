"""The whole way, once, in little: record programs, train on them, predict them, check the prediction.

`python -m cwm_core.demo -o FOLDER` runs it on two cores in about six minutes, `--short` in about one.
"""

from .run import main

__all__ = ["main"]
