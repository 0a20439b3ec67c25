"""Measure what execution traces teach: models trained on different documents of the same programs, compared.

`cwm ablation -o FOLDER` trains and compares them. `docs/ablation.md` has the design and results.
"""

from .run import run_ablation

__all__ = ["run_ablation"]
