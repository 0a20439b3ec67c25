"""From units to what is kept of them: recording twice, filters, context, tokens. Runs in a pool's processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, Self

from .. import machines
from ..data.traces import TrainingDocument, encode_for_training
from ..tokenizer import Tokenizer
from ..trace.context import ContextTooLarge, narrow
from .filters import (
    PERMISSIVE,
    Decontamination,
    Licences,
    NoEffects,
    SizeLimits,
    Sketch,
    is_deterministic,
    no_machine,
    no_secrets,
    sketch,
    terminates,
    within_memory,
)
from .judging import Judge
from .sample import Drop, Filter, Sample
from .unit import HASH_SEEDS, Unit
from .sandbox import LIMITS, RunResult, Run, RecordingSandbox

NOT_IMPORTED = "cannot be imported"
"""Why the calls of a module were not tried."""


@dataclass(frozen=True)
class CorpusSettings:
    """What is kept, and in which form."""

    tokenizer: str
    """Path of the vocabulary, as of `Tokenizer.load`."""
    max_frames: int = 2000
    """A trace that goes on is dropped: the limit that decides is this one, never a clock."""
    min_frames: int = 4
    max_tokens: int | None = 32768
    context_tokens: int | None = None
    """Show of a source what its trace touched, within so many tokens; None: the whole file."""
    allow_effects: frozenset[str] = frozenset()
    """As of `NoEffects`."""
    licences: frozenset[str] | None = PERMISSIVE
    """SPDX identifiers, None for any licence or none."""
    evaluation_sets: tuple[str, ...] = ()
    """JSONL files of problems that samples must not contain."""
    look_for_secrets: bool = True
    near_duplicates: float = 0.8
    """Estimated Jaccard similarity from which two traces are nearly the same; see `Duplicates`."""
    limits: machines.Limits = LIMITS
    sandbox: machines.Sandbox = "bubblewrap"


class KeptSample(NamedTuple):
    """A sample that passed every filter that looks at it alone."""

    id: str
    stored: bytes
    """Its trace, with the context to show."""
    document: TrainingDocument
    sketch: Sketch
    metadata: dict[str, Any]


class DroppedSample(NamedTuple):
    """A sample that did not."""

    id: str
    drop: Drop


@dataclass
class SandboxPair:
    """Two workers, of two hash seeds, for the calls of one module, or for any source; a context manager."""

    settings: CorpusSettings
    module: str | None = None
    paths: tuple[str, ...] = ()
    workers: list[RecordingSandbox] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start them. Raises as `RecordingSandbox`."""
        try:
            for seed in HASH_SEEDS:
                worker = RecordingSandbox(
                    limits=self.settings.limits,
                    sandbox=self.settings.sandbox,
                    hash_seed=seed,
                    paths=self.paths,
                    preload=self.module,
                )
                self.workers.append(worker)
        except BaseException:
            self.close()
            raise

    def record(self, orders: Sequence[tuple[Unit, Run]]) -> Iterator[tuple[RunResult, RunResult]]:
        """Both recordings of each order: the second one watches clocks and randomness too, and costs more."""
        first, second = self.workers
        once = list(first.run(self._order(order, "io") for _, order in orders))
        # What failed is not tried again: it is dropped whatever a second run does.
        worth = [order for (_, order), answer in zip(orders, once, strict=True) if answer.trace is not None]
        again = second.run(self._order(order, "all") for order in worth)
        return ((answer, answer if answer.trace is None else next(again)) for answer in once)

    def _order(self, order: Run, effects: Literal["io", "all"]) -> Run:
        options = {"max_frames": self.settings.max_frames} | order.options
        return replace(order, effects=effects, options=options)

    def close(self) -> None:
        """End both."""
        while self.workers:
            self.workers.pop().close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close."""
        self.close()


class SampleRecorder:
    """Makes samples of units, in the settings' form; keeps the sandboxes of the last module, and those of no module."""

    def __init__(self, settings: CorpusSettings) -> None:
        """Load the vocabulary and the evaluation sets. Raises what loading them raises."""
        self.settings = settings
        self.tokenizer = Tokenizer.load(settings.tokenizer)
        self._filters = list(_filters(settings))
        self._recorders: dict[tuple[str | None, tuple[str, ...]], SandboxPair] = {}

    def recorders(self, module: str | None, paths: tuple[str, ...]) -> SandboxPair:
        """The workers for a module's calls. Raises as `RecordingSandbox`."""
        key = module, paths
        if key not in self._recorders:
            for other in [k for k in self._recorders if k != (None, ())]:
                self._recorders.pop(other).close()
            self._recorders[key] = SandboxPair(self.settings, module, paths)
        return self._recorders[key]

    def samples(self, units: Sequence[Unit]) -> list[KeptSample | DroppedSample]:
        """What becomes of each call of each unit, in order, but those first whose licence is not allowed."""
        refused = [(unit, self.refused(unit.code, unit.provenance)) for unit in units]
        results: list[KeptSample | DroppedSample] = [
            DroppedSample(_id(unit, number), drop) for unit, drop in refused if drop for number, _ in enumerate(runs_of(unit))
        ]
        allowed = [unit for unit, drop in refused if drop is None]
        for key, group in groupby(allowed, lambda unit: (unit.module, unit.paths)):
            orders = [(unit, order) for unit in group for order in runs_of(unit)]
            try:
                answers = list(self.recorders(*key).record(orders))
            except ImportError as error:
                results += [DroppedSample(_id(unit, i), Drop(NOT_IMPORTED, str(error))) for i, (unit, _) in _numbered(orders)]
                continue
            for (number, (unit, order)), answer in zip(_numbered(orders), answers, strict=True):
                results.append(self._sample(unit, number, order, *answer))
        return results

    def refused(self, code: str, provenance: Mapping[str, Any]) -> Drop | None:
        """Return why a source must not be used, or None: asked before anything of it runs."""
        licences = self.settings.licences
        return None if licences is None else Licences(licences).check(provenance.get("licence"), code)

    def _sample(self, unit: Unit, number: int, order: Run, first: RunResult, second: RunResult) -> KeptSample | DroppedSample:
        id = _id(unit, number)
        for answer in (first, second):
            if answer.trace is None:
                return DroppedSample(id, Drop("limit of a clock" if answer.by_clock else str(answer.reason), id))
        provenance = dict(unit.provenance)
        provenance.pop("expected", None)
        effects = first.effects | second.effects
        sample = Sample(id, unit.code, order.call or "", first.trace, provenance, second.trace, effects, unit.paths)
        result = self.judged(sample)
        if isinstance(result, DroppedSample) or not unit.outputs:
            return result
        passes = Judge(self.settings.limits, self.settings.sandbox)(unit, number, first.trace)
        if isinstance(passes, Drop):
            return DroppedSample(id, passes)
        return result._replace(metadata=result.metadata | {"passes": passes})

    def judged(self, sample: Sample) -> KeptSample | DroppedSample:
        """The sample in its final form, or which filter drops it; its second recording is in `Sample.again`."""
        if sample.again is None:
            return DroppedSample(sample.id, Drop("not deterministic", "not in the second recording"))
        for filter in (terminates, is_deterministic, within_memory, NoEffects(self.settings.allow_effects)):
            if (drop := filter(sample)) is not None:
                return DroppedSample(sample.id, drop)
        return self._kept(sample)

    def _kept(self, sample: Sample) -> KeptSample | DroppedSample:
        try:
            sample = self._narrowed(sample)
        except ContextTooLarge as error:
            return DroppedSample(sample.id, Drop("context too large", str(error)))
        for filter in self._filters:
            if (drop := filter(sample)) is not None:
                return DroppedSample(sample.id, drop)
        document = encode_for_training(self.tokenizer, sample.trace)
        limit = self.settings.max_tokens
        if limit is not None and len(document.ids) > limit:
            return DroppedSample(sample.id, Drop("too many tokens", f"{len(document.ids)} > {limit}"))
        metadata = {"source": "corpus", **sample.provenance, "call": sample.call}
        return KeptSample(sample.id, sample.trace.to_bytes(), document, sketch(sample.trace), metadata)

    def _narrowed(self, sample: Sample) -> Sample:
        budget = self.settings.context_tokens
        if budget is not None:
            count = lambda text: len(self.tokenizer.encode(text))  # noqa: E731
            sample = replace(sample, trace=narrow(sample.trace, budget=budget, count_tokens=count))
        return replace(sample, code=sample.trace.context)

    def close(self) -> None:
        """End every sandbox."""
        while self._recorders:
            self._recorders.popitem()[1].close()


def runs_of(unit: Unit) -> Iterator[Run]:
    """The runs of a unit."""
    for call in unit.calls:
        yield Run(unit.code, call, unit.module)
    for text in unit.inputs:
        yield Run(unit.code, stdin=text, options={"capture_output": True})


def _filters(settings: CorpusSettings) -> Iterator[Filter]:
    """Those that look at the sample as it would be kept, the cheapest first."""
    yield SizeLimits(min_frames=settings.min_frames)
    if "machine" not in settings.allow_effects:
        yield no_machine
    if settings.licences is not None:
        yield Licences(settings.licences)
    if settings.evaluation_sets:
        sets = Decontamination()
        for path in settings.evaluation_sets:
            sets.add_jsonl(path)
        yield sets
    if settings.look_for_secrets:
        yield no_secrets


def _numbered(orders: Sequence[tuple[Unit, Run]]) -> Iterator[tuple[int, tuple[Unit, Run]]]:
    """Each order with its number within its unit."""
    for _, group in groupby(orders, lambda pair: pair[0].id):
        yield from enumerate(group)


def _id(unit: Unit, number: int) -> str:
    return f"{unit.id}#{number}"
