"""What an engine asks of a constraint on what a sequence may say."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class Constraint(Protocol):
    """Which tokens may come next, given all that came after the prompt. Each sequence needs an object of its own.

    The engine alternates: `allowed`, choose among those, `advance`, and so on.
    """

    def allowed(self) -> np.ndarray | Tensor | None:
        """Bool [vocab], on the host: true where a token may come next; None where any may.

        Where none may, the sequence ends, with finish_reason "constraint". The engine only reads the array and is done
        with it before `advance`, so one that is kept and changed in place will do.
        """
        ...

    def advance(self, token: int) -> None:
        """`token` was appended: one that was allowed, or one that `on_token` supplied, allowed or not."""
        ...
