"""The full pipeline at a small scale: record programs, train on them, predict executions, check the predictions.

`cwm demo -o FOLDER` takes six to ten minutes on two cores; with `--short`, about one.
"""

from .run import run_demo

__all__ = ["run_demo"]
