"""Explore functions and record the chosen calls, in the same sandboxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...support.endpoint import AnswerError, ContextExceeded, Endpoint, chat_model
from ...support.secrets import KEY_VARIABLE
from ..reasons import DropReason
from ..recording import DroppedSample, KeptSample, SampleRecorder
from ..sample import Drop
from .discovery import Function
from .explore import Generate, explore


@dataclass(frozen=True)
class ExploreAndRecord:
    """A `Work` for items that are functions: finds, chooses, and records calls of each."""

    seed: int = 0
    """Seed of all random choices."""
    budget: int = 100
    """Maximum number of calls of a function to try."""
    max_calls: int = 5
    """Maximum number of calls of a function to record."""
    endpoint: str | None = None
    """URL of an OpenAI-compatible server, as in `Endpoint`, to ask for calls of each function too."""
    model: str = ""
    """Name of the model on the server."""
    key_variable: str = KEY_VARIABLE
    """Environment variable with the key of the server."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the variables that the processes of a pool need; see `pipeline.Work`."""
        return () if self.endpoint is None else (self.key_variable,)

    def __call__(self, functions: Sequence[Function], recorder: SampleRecorder) -> list[KeptSample | DroppedSample]:
        """Return a sample for each call, or one dropped sample for a function without calls.

        Raises:
            EndpointError: The server failed.
        """
        generate = None if self.endpoint is None else _suggestions(self.endpoint, self.model, self.key_variable)
        refused = [(function, recorder.refuse(function.code, function.provenance)) for function in functions]
        results: list[KeptSample | DroppedSample] = [
            DroppedSample(function.id, drop) for function, drop in refused if drop
        ]
        allowed = [function for function, drop in refused if drop is None]
        for (module, paths), group in groupby(allowed, lambda function: (function.module, function.paths)):
            try:
                sandbox = recorder.pair(module, paths).sandboxes[0]
            except ImportError as error:
                drop = Drop(DropReason.NOT_IMPORTED, str(error))
                results += [DroppedSample(function.id, drop) for function in group]
                continue
            units = []
            for function in group:
                explored = explore(
                    function,
                    sandbox,
                    seed=self.seed,
                    budget=self.budget,
                    max_calls=self.max_calls,
                    generate=generate,
                )
                if explored.unit is None:
                    most_common = {str(outcome): count for outcome, count in explored.outcomes.most_common(1)}
                    results.append(DroppedSample(function.id, Drop(DropReason.NO_GOOD_CALL, str(most_common))))
                else:
                    units.append(explored.unit)
            results += recorder.record(units)
        return results


def _suggestions(url: str, model: str, key_variable: str) -> Generate:
    ask = chat_model(Endpoint(url, key_variable=key_variable), model, temperature=0.7)

    def generate(messages: list[dict[str, str]]) -> str:
        try:
            return ask(messages)
        except ContextExceeded:  # the source of the function is too long
            return ""
        except AnswerError as error:  # complete lines of a cut answer are calls all the same
            return error.text.rpartition("\n")[0]

    return generate
