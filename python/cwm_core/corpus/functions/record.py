"""Functions in the pipeline: explored and recorded in the same sandboxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ...support.endpoint import AnswerError, ContextExceeded, Endpoint, chat_model
from ...support.secrets import KEY_VARIABLE
from ..recording import NOT_IMPORTED, KeptSample, DroppedSample, SampleRecorder
from ..sample import Drop
from .discovery import Function
from .explore import Generate, explore


@dataclass(frozen=True)
class ExploreAndRecord:
    """`Work` for items that are functions: calls of each are looked for, chosen, and recorded."""

    seed: int = 0
    budget: int = 100
    """The most calls that are tried of a function."""
    most: int = 5
    """The most calls that are recorded of a function."""
    endpoint: str | None = None
    """Of an OpenAI-compatible server, as of `Endpoint`, whose `model` is asked for calls of each function, too."""
    model: str = ""
    key_variable: str = KEY_VARIABLE
    """The variable of the environment with the endpoint's key."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the variables that the processes of a pool need; see `pipeline.Work`."""
        return () if self.endpoint is None else (self.key_variable,)

    def __call__(self, functions: Sequence[Function], recording: SampleRecorder) -> list[KeptSample | DroppedSample]:
        """What becomes of each call; of a function without one, why. Raises `EndpointError`."""
        generate = None if self.endpoint is None else _suggestions(self.endpoint, self.model, self.key_variable)
        refused = [(function, recording.refused(function.code, function.provenance)) for function in functions]
        results: list[KeptSample | DroppedSample] = [DroppedSample(function.id, drop) for function, drop in refused if drop]
        allowed = [function for function, drop in refused if drop is None]
        for (module, paths), group in groupby(allowed, lambda function: (function.module, function.paths)):
            try:
                worker = recording.recorders(module, paths).workers[0]
            except ImportError as error:
                results += [DroppedSample(function.id, Drop(NOT_IMPORTED, str(error))) for function in group]
                continue
            units = []
            for function in group:
                explored = explore(
                    function, worker, seed=self.seed, budget=self.budget, most=self.most, generate=generate
                )
                if explored.unit is None:
                    most_common = explored.outcomes.most_common(1)
                    results.append(DroppedSample(function.id, Drop("no call that ends well", str(dict(most_common)))))
                else:
                    units.append(explored.unit)
            results += recording.samples(units)
        return results


def _suggestions(url: str, model: str, key_variable: str) -> Generate:
    ask = chat_model(Endpoint(url, key_variable=key_variable), model, temperature=0.7)

    def generate(messages: list[dict[str, str]]) -> str:
        try:
            return ask(messages)
        except ContextExceeded:  # by the function's source
            return ""
        except AnswerError as error:  # whole lines of it are calls all the same
            return error.text.rpartition("\n")[0]

    return generate
