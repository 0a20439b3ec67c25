"""Interface of constraints on generated tokens."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor


class Constraint(Protocol):
    """Decides which tokens may come next, given all tokens after the prompt. Each sequence needs its own object.

    For each token, the engine calls `allowed`, chooses one of the allowed tokens, and calls `advance`.
    """

    def allowed(self) -> np.ndarray | Tensor | None:
        """Return a bool array [vocab] on the host, true for allowed tokens, or None to allow every token.

        If no token is allowed, the sequence ends with `FinishReason.CONSTRAINT`. The engine only reads the array, and
        only until it calls `advance`, so an implementation may update one array in place.
        """
        ...

    def advance(self, token: int) -> None:
        """Record that `token` was appended: an allowed token, or any token that `on_token` supplied."""
        ...
