"""Turn units into samples: record twice, filter, cut the context, tokenize. Runs in the processes of a pool."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal, NamedTuple, Self

from .. import machines
from ..data.traces import TrainingDocument, encode_for_training
from ..tokenizer import Tokenizer
from ..trace.context import ContextTooLarge, narrow
from .effects import Effect
from .filters import (
    PERMISSIVE,
    Decontamination,
    Licenses,
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
from .reasons import DropReason
from .sample import Drop, Filter, Sample
from .sandbox import LIMITS, RecordingSandbox, Run, RunResult
from .unit import HASH_SEEDS, Unit


@dataclass(frozen=True)
class CorpusSettings:
    """Settings that decide which samples a corpus keeps and how it stores them."""

    tokenizer: str
    """Path of the tokenizer, as in `Tokenizer.load`."""
    max_frames: int = 2000
    """Maximum number of frames; longer traces are dropped. This limit, not a timer, decides what is too long."""
    min_frames: int = 4
    """Minimum number of frames in a trace."""
    max_tokens: int | None = 32768
    """Maximum number of tokens in a document; None for no limit."""
    context_tokens: int | None = None
    """Maximum tokens of source context, reduced to the parts that the trace touched. None shows the whole file."""
    allow_effects: frozenset[str] = frozenset()
    """Values of `Effect` that do not drop a sample."""
    licenses: frozenset[str] | None = PERMISSIVE
    """SPDX identifiers of the licenses to keep; None keeps code of any license or of none."""
    evaluation_sets: tuple[str, ...] = ()
    """JSONL files of problems that samples must not contain."""
    look_for_secrets: bool = True
    """Drop samples that show secrets or personal data."""
    near_duplicates: float = 0.8
    """Estimated Jaccard similarity at which two traces count as near duplicates; see `Duplicates`."""
    limits: machines.Limits = LIMITS
    """Limits of each run."""
    sandbox: machines.Sandbox = "bubblewrap"
    """Kind of isolation."""
    filters: tuple[Filter, ...] = ()
    """Filters of your own. They run after the others, on the sample in its final form."""


class KeptSample(NamedTuple):
    """A sample that passed every filter that looks at one sample."""

    id: str
    """Id of the sample."""
    stored: bytes
    """Stored form of the trace, with the context to show."""
    document: TrainingDocument
    """Tokens of the trace."""
    sketch: Sketch
    """Sketch of the trace, to find duplicates."""
    metadata: dict[str, Any]
    """Metadata of the trace in its store."""


class DroppedSample(NamedTuple):
    """A sample that a filter dropped."""

    id: str
    """Id of the sample."""
    drop: Drop
    """Reason that the sample was dropped."""


@dataclass
class SandboxPair:
    """A context manager with two sandboxes that differ in hash seed, for calls of one module or for any source text.

    Raises:
        SandboxError: The sandbox does not work on this machine.
        ImportError: The module cannot be imported.
    """

    settings: CorpusSettings
    """Settings of the corpus."""
    module: str | None = None
    """Module to preload, as in `RecordingSandbox`."""
    paths: tuple[str, ...] = ()
    """Folders to import from."""
    sandboxes: list[RecordingSandbox] = field(default_factory=list)
    """The two sandboxes; empty once closed."""

    def __post_init__(self) -> None:
        """Start the sandboxes."""
        try:
            for seed in HASH_SEEDS:
                sandbox = RecordingSandbox(
                    limits=self.settings.limits,
                    sandbox=self.settings.sandbox,
                    hash_seed=seed,
                    paths=self.paths,
                    preload=self.module,
                )
                self.sandboxes.append(sandbox)
        except BaseException:
            self.close()
            raise

    def record(self, runs: Sequence[Run]) -> Iterator[tuple[RunResult, RunResult]]:
        """Yield both recordings of each run. The second one watches clocks and randomness too, and costs more."""
        first, second = self.sandboxes
        once = list(first.run(self._complete(run, "io") for run in runs))
        # A failed run is dropped regardless of a second run.
        recorded = [run for run, result in zip(runs, once, strict=True) if result.trace is not None]
        again = second.run(self._complete(run, "all") for run in recorded)
        return ((result, result if result.trace is None else next(again)) for result in once)

    def _complete(self, run: Run, effects: Literal["io", "all"]) -> Run:
        options = {"max_frames": self.settings.max_frames} | run.options
        return replace(run, effects=effects, options=options)

    def close(self) -> None:
        """End both sandboxes."""
        while self.sandboxes:
            self.sandboxes.pop().close()

    def __enter__(self) -> Self:
        """Return the pair."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the pair."""
        self.close()


class SampleRecorder:
    """Records units and filters the samples.

    It keeps the sandboxes of the last module, and those that belong to no module, for the next units.
    """

    def __init__(self, settings: CorpusSettings) -> None:
        """Load the tokenizer and the evaluation sets.

        Raises:
            ValueError: The tokenizer or an evaluation set is damaged.
            OSError: The tokenizer or an evaluation set cannot be read.
        """
        self.settings = settings
        self.tokenizer = Tokenizer.load(settings.tokenizer)
        self._filters = list(_filters(settings))
        self._pairs: dict[tuple[str | None, tuple[str, ...]], SandboxPair] = {}

    def pair(self, module: str | None, paths: tuple[str, ...]) -> SandboxPair:
        """Return the sandboxes for the calls of a module; raise what `SandboxPair` raises."""
        key = module, paths
        if key not in self._pairs:
            for other in [k for k in self._pairs if k != (None, ())]:
                self._pairs.pop(other).close()
            self._pairs[key] = SandboxPair(self.settings, module, paths)
        return self._pairs[key]

    def record(self, units: Sequence[Unit]) -> list[KeptSample | DroppedSample]:
        """Record each run of each unit.

        Returns:
            First the samples whose license is not allowed, then the others, in order.
        """
        refused = [(unit, self.refuse(unit.code, unit.provenance)) for unit in units]
        results: list[KeptSample | DroppedSample] = [
            DroppedSample(_id(unit, number), drop)
            for unit, drop in refused
            if drop
            for number, _ in enumerate(runs_of(unit))
        ]
        allowed = [unit for unit, drop in refused if drop is None]
        for (module, paths), group in groupby(allowed, lambda unit: (unit.module, unit.paths)):
            numbered = [(unit, number, run) for unit in group for number, run in enumerate(runs_of(unit))]
            try:
                recorded = list(self.pair(module, paths).record([run for _, _, run in numbered]))
            except ImportError as error:
                drop = Drop(DropReason.NOT_IMPORTED, str(error))
                results += [DroppedSample(_id(unit, number), drop) for unit, number, _ in numbered]
                continue
            for (unit, number, run), (first, second) in zip(numbered, recorded, strict=True):
                results.append(self._sample(unit, number, run, first, second))
        return results

    def refuse(self, code: str, provenance: Mapping[str, Any]) -> Drop | None:
        """Return why source text must not be used, or None. Ask before any of it runs."""
        licenses = self.settings.licenses
        return None if licenses is None else Licenses(licenses).check(provenance.get("license"), code)

    def _sample(
        self, unit: Unit, number: int, run: Run, first: RunResult, second: RunResult
    ) -> KeptSample | DroppedSample:
        id = _id(unit, number)
        for result in (first, second):
            if result.trace is None:
                return DroppedSample(id, Drop(DropReason.CLOCK if result.by_clock else str(result.reason), id))
        assert first.trace is not None
        provenance = dict(unit.provenance)
        provenance.pop("expected", None)
        effects: frozenset[Effect] = first.effects | second.effects
        sample = Sample(id, unit.code, run.call or "", first.trace, provenance, second.trace, effects, unit.paths)
        filtered = self.filter(sample)
        if isinstance(filtered, DroppedSample) or not unit.outputs:
            return filtered
        passes = Judge(self.settings.limits, self.settings.sandbox)(unit, number, first.trace)
        if isinstance(passes, Drop):
            return DroppedSample(id, passes)
        return filtered._replace(metadata=filtered.metadata | {"passes": passes})

    def filter(self, sample: Sample) -> KeptSample | DroppedSample:
        """Return a sample in its final form, or why it is dropped. `Sample.again` must be its second recording."""
        if sample.again is None:
            return DroppedSample(sample.id, Drop(DropReason.NOT_DETERMINISTIC, "not in the second recording"))
        for filter in (terminates, is_deterministic, within_memory, NoEffects(self.settings.allow_effects)):
            if (drop := filter(sample)) is not None:
                return DroppedSample(sample.id, drop)
        return self._finish(sample)

    def _finish(self, sample: Sample) -> KeptSample | DroppedSample:
        try:
            sample = self._narrow(sample)
        except ContextTooLarge as error:
            return DroppedSample(sample.id, Drop(DropReason.CONTEXT_TOO_LARGE, str(error)))
        for filter in self._filters:
            if (drop := filter(sample)) is not None:
                return DroppedSample(sample.id, drop)
        document = encode_for_training(self.tokenizer, sample.trace)
        limit = self.settings.max_tokens
        if limit is not None and len(document.ids) > limit:
            return DroppedSample(sample.id, Drop(DropReason.TOO_MANY_TOKENS, f"{len(document.ids)} > {limit}"))
        metadata = {"source": "corpus", **sample.provenance, "call": sample.call}
        return KeptSample(sample.id, sample.trace.to_bytes(), document, sketch(sample.trace), metadata)

    def _narrow(self, sample: Sample) -> Sample:
        budget = self.settings.context_tokens
        if budget is not None:
            trace = narrow(sample.trace, budget=budget, count_tokens=lambda text: len(self.tokenizer.encode(text)))
            sample = replace(sample, trace=trace)
        return replace(sample, code=sample.trace.context)

    def close(self) -> None:
        """Close every sandbox."""
        while self._pairs:
            self._pairs.popitem()[1].close()


def runs_of(unit: Unit) -> Iterator[Run]:
    """Yield the runs of a unit."""
    for call in unit.calls:
        yield Run(unit.code, call, unit.module)
    for text in unit.inputs:
        yield Run(unit.code, stdin=text, options={"capture_output": True})


def _filters(settings: CorpusSettings) -> Iterator[Filter]:
    """Yield the filters for a sample in its final form, the cheapest first."""
    yield SizeLimits(min_frames=settings.min_frames)
    if Effect.MACHINE not in settings.allow_effects:
        yield no_machine
    if settings.licenses is not None:
        yield Licenses(settings.licenses)
    if settings.evaluation_sets:
        sets = Decontamination()
        for path in settings.evaluation_sets:
            sets.add_jsonl(path)
        yield sets
    if settings.look_for_secrets:
        yield no_secrets
    yield from settings.filters


def _id(unit: Unit, number: int) -> str:
    return f"{unit.id}#{number}"
