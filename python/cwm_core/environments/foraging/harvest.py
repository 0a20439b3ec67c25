"""Make tasks from repositories by breaking code in one place, such that some tests fail."""

import collections
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ...machines import Backend, SandboxBackend, SandboxError
from ...support.log import ResumableLog
from ..outcomes import PASSED, outcome_of, run_tests
from ..patches import make_diff
from ..rewards import judge
from ..tasks import Task
from .journal import Journal
from .mixture import MIX, interleaved, mixed, quotas
from .mutations import KINDS, Mutation, find_mutations
from .prompts import write_prompt
from .reasons import CandidateFault
from .repository import Repository, Survey, survey

Item = TypeVar("Item")
Value = TypeVar("Value")

VERSION = 2
"""Version of the outcomes in a journal. Since 2, the known solution of each task is judged."""
SLACK_SECONDS = 10.0
SLACK_FACTOR = 5.0
"""Time limit of a broken repository's tests: the slack, plus this factor times the duration of a clean run."""


@dataclass(frozen=True)
class Candidate:
    """A mutation of a module, which can become a task."""

    repository: Repository
    survey: Survey
    path: str
    mutation: Mutation

    @property
    def diffs(self) -> tuple[str, str]:
        """Diff that breaks the repository, and its reverse."""
        source = self.survey.sources[self.path]
        broken = self.mutation.apply(source)
        return make_diff(self.path, source, broken), make_diff(self.path, broken, source)

    @property
    def name(self) -> str:
        """Name of the task, unique up to candidates with equal diffs."""
        digest = hashlib.sha256(self.diffs[0].encode(errors="surrogateescape")).hexdigest()[:12]
        return f"{self.repository.name.replace('/', '__')}-{self.mutation.kind}-{digest}"


@dataclass
class Harvest:
    """Result of `forage`."""

    tasks: dict[str, int] = field(default_factory=dict)
    """Number of tasks by kind."""
    tried: dict[str, int] = field(default_factory=dict)
    """Number of tried candidates by kind."""
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    """Number of dropped candidates by kind and reason, which begins with a `CandidateFault`."""
    repositories_left_out: dict[str, str] = field(default_factory=dict)
    """Reason for each dropped repository, by the repository's name."""
    flaky: dict[str, int] = field(default_factory=dict)
    """Number of flaky tests by repository."""
    short: int = 0
    """Number of missing tasks after all candidates were tried."""
    unscored: int = 0
    """Number of issues added without judging their solution, because they have none or the backend opens no images."""


def forage(
    repositories: Sequence[Repository],
    output: str | os.PathLike[str],
    *,
    count: int,
    backend: Backend,
    issues: Iterable[Task] = (),
    mix: Mapping[str, float] = MIX,
    seed: int = 0,
    workers: int = 1,
    seconds: float = 600.0,
    progress: Callable[[int, int], object] | None = None,
    status: Callable[[str], object] | None = None,
) -> Harvest:
    """Write `count` tasks to `tasks.jsonl` in the folder `output`.

    A mutation becomes a task if it breaks at least one test but not all. Tests that do not pass in two clean runs are
    ignored. The known solution of each task and issue is judged, and tasks that it does not solve are dropped. Issues
    whose solution cannot be judged here are added and counted. Kinds without candidates get no share. If a kind runs
    out, the missing tasks are divided among the others in proportion to their shares.

    Equal arguments give the same file, byte for byte, with any number of workers. Only tests that take nearly as long
    as their limit, `SLACK_SECONDS` plus `SLACK_FACTOR` times a clean run, can make a difference. Outcomes are
    written to `journal.jsonl` one by one, so that the same call resumes after an interruption.

    Args:
        repositories: Repositories with unique names.
        output: Folder for the tasks and the journal.
        count: Number of tasks.
        backend: Opens the machines, several at a time.
        issues: Tasks from issues, with unique names.
        mix: Shares of the kinds.
        seed: Seed of all sampling.
        workers: Number of threads, each with one machine.
        seconds: Time limit of a clean run and of judging an issue, in seconds.
        progress: Called with the number of tasks so far, and `count`.
        status: Called with a description of the current state.

    Raises:
        SandboxError: This host cannot run the machines.
        ValueError: The folder belongs to a different call, a name occurs twice, or the mix has no share.
    """
    issues = list(issues)
    _check_names([r.name for r in repositories])
    _check_names([task.name for task in issues])
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.jsonl", _settings(repositories, issues, count, mix, seed))
    harvest = Harvest()
    status = status or _say_nothing
    try:
        with ThreadPoolExecutor(workers) as pool, _Tasks(folder / "tasks.jsonl") as tasks:
            try:
                surveyed = _survey_all(pool, repositories, backend, seconds, harvest=harvest, status=status)
                _check_unchanged(journal, surveyed)
                streams: dict[str, Sequence[Any]] = dict(_candidates(surveyed, seed, mix))
                streams["issue-fix"] = random.Random(f"{seed}/issue-fix").sample(issues, len(issues))
                run = _Run(pool, workers, backend, journal, seed, seconds, harvest, tasks, count, progress, status)
                run.fill({kind: items for kind, items in streams.items() if items and mix.get(kind, 0) > 0}, mix)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        journal.close()
    return harvest


@dataclass
class _Run:
    """State of a run."""

    pool: ThreadPoolExecutor
    workers: int
    backend: Backend
    journal: Journal
    seed: int
    seconds: float
    harvest: Harvest
    tasks: "_Tasks"
    count: int
    progress: Callable[[int, int], object] | None
    status: Callable[[str], object]

    def fill(self, streams: dict[str, Sequence[Any]], mix: Mapping[str, float]) -> None:
        """Add tasks by quota, and divide the quotas of kinds that run out among the others."""
        shares = {kind: mix[kind] for kind in streams}
        left = self.count
        self.harvest.tasks = dict.fromkeys(shares, 0)
        while left and shares:
            streams = self._take(streams, shares, quotas(left, shares))
            left = self.count - sum(self.harvest.tasks.values())
            streams = {kind: items for kind, items in streams.items() if items}
            shares = {kind: mix[kind] for kind in streams}
        self.harvest.short = left

    def _take(
        self, streams: dict[str, Sequence[Any]], shares: dict[str, float], wanted: dict[str, int]
    ) -> dict[str, Sequence[Any]]:
        """Add the wanted number of tasks of each kind, and return the unused candidates."""
        rest: dict[str, list[Any]] = {kind: [] for kind in streams}
        harvest = self.harvest

        def needed() -> Iterator[tuple[str, Any]]:
            for kind, item in mixed(streams, shares):
                if wanted[kind] > 0:
                    yield kind, item
                else:
                    rest[kind].append(item)

        for (kind, item), outcome in self._in_order(needed()):
            if wanted[kind] == 0:  # the kind became complete while this candidate was tried
                rest[kind].append(item)
                continue
            harvest.tried[kind] = harvest.tried.get(kind, 0) + 1
            if isinstance(outcome, Task) and self.tasks.add(outcome):
                wanted[kind] -= 1
                harvest.tasks[kind] += 1
                harvest.unscored += isinstance(item, Task) and not can_be_scored(item, self.backend)
                if self.progress:
                    self.progress(sum(harvest.tasks.values()), self.count)
            else:
                reason = outcome if isinstance(outcome, str) else CandidateFault.DUPLICATE
                reasons = harvest.left_out.setdefault(kind, {})
                reasons[reason] = reasons.get(reason, 0) + 1
            done, tried = sum(harvest.tasks.values()), sum(harvest.tried.values())
            self.status(f"{done:,} of {self.count:,} tasks, {tried:,} candidates tried")
        return dict(rest)

    def _in_order(self, items: Iterator[tuple[str, Any]]) -> Iterator[tuple[tuple[str, Any], Task | str]]:
        """Yield each item with its outcome, in order, while later items are tried."""
        waiting: collections.deque[tuple[tuple[str, Any], Future[Task | str] | Task | str]] = collections.deque()

        def first() -> tuple[tuple[str, Any], Task | str]:
            entry, work = waiting.popleft()
            if not isinstance(work, Future):
                return entry, work
            outcome = work.result()
            record = {"task": outcome.to_json()} if isinstance(outcome, Task) else {"left_out": outcome}
            self.journal.add(entry[1].name, record)
            return entry, outcome

        for kind, item in items:
            waiting.append(((kind, item), self._known(item.name) or self._try(item)))
            if len(waiting) >= 2 * self.workers:
                yield first()
        while waiting:
            yield first()

    def _try(self, item: Candidate | Task) -> Future[Task | str] | Task:
        if isinstance(item, Candidate):
            return self.pool.submit(try_candidate, item, self.backend, self.seed)
        if can_be_scored(item, self.backend):
            return self.pool.submit(scored, item, self.backend, self.seconds)
        return item

    def _known(self, name: str) -> Task | str | None:
        record = self.journal.get(name)
        if record is None:
            return None
        return Task.from_json(record["task"]) if "task" in record else str(record["left_out"])


def try_candidate(candidate: Candidate, backend: Backend, seed: int) -> Task | str:
    """Run the tests on the broken repository; return the task, or the reason to drop the candidate."""
    repository, found = candidate.repository, candidate.survey
    try:
        compile(candidate.mutation.apply(found.sources[candidate.path]), candidate.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return CandidateFault.DOES_NOT_COMPILE
    limit = SLACK_SECONDS + SLACK_FACTOR * found.seconds
    try:
        machine = backend.open(repository.task(candidate.name, patch=candidate.diffs[0]))
        try:
            run = run_tests(machine, repository.test_command, seconds=limit)
        finally:
            machine.close()
    except (SandboxError, ValueError, OSError) as error:
        return f"{CandidateFault.MACHINE_FAILED}: {type(error).__name__}"
    if run.problem:
        return CandidateFault.TIMED_OUT if run.completed.exceeded else CandidateFault.NO_REPORT
    outcomes = {name: outcome_of(name, run.outcomes) for name in found.reliable}
    fail_to_pass = tuple(name for name, outcome in outcomes.items() if outcome not in PASSED)
    pass_to_pass = tuple(name for name, outcome in outcomes.items() if outcome in PASSED)
    if not fail_to_pass:
        return CandidateFault.BREAKS_NO_TEST
    if not pass_to_pass:
        return CandidateFault.BREAKS_EVERY_TEST
    return scored(_task_of(candidate, fail_to_pass, pass_to_pass, seed), backend, limit)


def _task_of(candidate: Candidate, fail_to_pass: tuple[str, ...], pass_to_pass: tuple[str, ...], seed: int) -> Task:
    repository, found, mutation = candidate.repository, candidate.survey, candidate.mutation
    broken, solution = candidate.diffs
    where = {"path": candidate.path, "line": mutation.line, "seed": seed}
    prompt = write_prompt(fail_to_pass, repository.test_command, f"{seed}/{candidate.name}")
    return repository.task(
        candidate.name,
        prompt,
        patch=broken,
        solution=solution,
        fail_to_pass=fail_to_pass,
        pass_to_pass=pass_to_pass,
        protected=found.protected,
        kind=mutation.kind,
        provenance={**repository.provenance, "repository": repository.name, **where},
    )


def can_be_scored(task: Task, backend: Backend) -> bool:
    """Return whether the known solution of a task can be judged: it exists, and the backend can open the task."""
    return bool(task.solution) and (task.folder is not None or not isinstance(backend, SandboxBackend))


def scored(task: Task, backend: Backend, seconds: float) -> Task | str:
    """Return a task if its known solution solves it, else the reason to drop it."""
    try:
        reward = judge(task, task.solution.encode(errors="surrogateescape"), backend, seconds=seconds)
    except (SandboxError, ValueError, OSError) as error:
        return f"{CandidateFault.MACHINE_FAILED}: {type(error).__name__}"
    if reward.value == 1.0:
        return task
    return f"{CandidateFault.UNSOLVED} {reward.value:g}: {reward.reason.partition(':')[0].partition(' (')[0]}"


def _say_nothing(_: str) -> None:
    pass


def _survey_all(
    pool: ThreadPoolExecutor,
    repositories: Sequence[Repository],
    backend: Backend,
    seconds: float,
    *,
    harvest: Harvest,
    status: Callable[[str], object],
) -> list[tuple[Repository, Survey]]:
    futures = [pool.submit(survey, repository, backend, seconds=seconds) for repository in repositories]
    surveyed = []
    for number, (repository, future) in enumerate(zip(repositories, futures, strict=True)):
        status(f"{number:,} of {len(repositories):,} repositories surveyed")
        try:
            found = future.result()
        except (ValueError, OSError) as error:
            harvest.repositories_left_out[repository.name] = str(error)
            continue
        harvest.flaky[repository.name] = len(found.flaky)
        surveyed.append((repository, found))
    return surveyed


def _candidates(
    surveyed: Sequence[tuple[Repository, Survey]], seed: int, mix: Mapping[str, float]
) -> dict[str, list[Candidate]]:
    """Return candidates by kind, alternating between repositories, each in an order chosen by the seed."""
    found: dict[str, list[list[Candidate]]] = {kind: [] for kind in KINDS if mix.get(kind, 0) > 0}
    for repository, known in surveyed:
        of_kind: dict[str, list[Candidate]] = {kind: [] for kind in found}
        for path, source in sorted(known.sources.items()):
            try:
                mutations = find_mutations(source, tuple(found))
            except ValueError:
                continue  # not valid in this version of Python, or not in UTF-8
            for mutation in mutations:
                of_kind[mutation.kind].append(Candidate(repository, known, path, mutation))
        for kind, candidates in of_kind.items():
            random.Random(f"{seed}/{repository.name}/{kind}").shuffle(candidates)
            found[kind].append(candidates)
    return {kind: list(interleaved(lists)) for kind, lists in found.items()}


class _Tasks:
    """File of tasks. Lines of an interrupted run are generated again and must be equal."""

    def __init__(self, path: Path) -> None:
        self._path, self._names = path, set[str]()
        self._log = ResumableLog(path)
        self._expected = collections.deque(line for _, line in self._log.lines())

    def add(self, task: Task) -> bool:
        """Write a task; return False if there is one with its name."""
        if task.name in self._names:
            return False
        self._names.add(task.name)
        line = task.to_json().encode()
        if not self._expected:
            self._log.append_line(line)
        elif self._expected.popleft() != line + b"\n":
            raise ValueError(f"{self._path} has different tasks than this call makes; choose another folder")
        return True

    def __enter__(self) -> "_Tasks":
        return self

    def __exit__(self, *exception: object) -> None:
        self._log.close()


def _settings(
    repositories: Sequence[Repository], issues: Sequence[Task], count: int, mix: Mapping[str, float], seed: int
) -> dict[str, Any]:
    described = json.dumps([asdict(repository) for repository in repositories], default=os.fspath)
    return {
        "version": VERSION,
        "repositories": hashlib.sha256(described.encode()).hexdigest()[:16],
        "issues": hashlib.sha256("\n".join(task.to_json() for task in issues).encode()).hexdigest()[:16],
        "count": count,
        "mix": dict(mix),
        "seed": seed,
    }


def _check_unchanged(journal: Journal, surveyed: Sequence[tuple[Repository, Survey]]) -> None:
    for repository, found in surveyed:
        id = f"survey of {repository.name}"
        record = journal.get(id)
        if record is None:
            journal.add(id, {"digest": found.digest})
        elif record["digest"] != found.digest:
            raise ValueError(f"{repository.name} or its tests have changed since; choose another folder")


def _check_names(names: Sequence[str]) -> None:
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise ValueError(f"the name {name!r} occurs {times} times")
