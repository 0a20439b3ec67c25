"""Making tasks from repositories: break what works, in one place, so that some tests tell."""

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
from ..outcomes import PASSED, outcome_of, run_tests
from ..patches import make_diff
from ..rewards import judge
from ..tasks import Task
from .journal import Journal
from .mixture import MIX, interleaved, mixed, quotas
from .mutations import KINDS, Mutation, find_mutations
from .prompts import write_prompt
from .repository import Repository, Survey, survey

Item = TypeVar("Item")
Value = TypeVar("Value")

VERSION = 2
"""Of what outcomes in a journal mean: since 2, that the known solution of a task was judged."""
SLACK_SECONDS = 10.0
SLACK_FACTOR = 5.0
"""A broken repository's tests get the slack and so many times as long as whole ones took, then they do not end."""


@dataclass(frozen=True)
class Candidate:
    """A mutation of a module of a repository, which may become a task."""

    repository: Repository
    survey: Survey
    path: str
    mutation: Mutation

    @property
    def diffs(self) -> tuple[str, str]:
        """From the repository to the broken one, and back."""
        source = self.survey.sources[self.path]
        broken = self.mutation.apply(source)
        return make_diff(self.path, source, broken), make_diff(self.path, broken, source)

    @property
    def name(self) -> str:
        """Of the task; tells candidates apart, but for those with the same diff."""
        digest = hashlib.sha256(self.diffs[0].encode(errors="surrogateescape")).hexdigest()[:12]
        return f"{self.repository.name.replace('/', '__')}-{self.mutation.kind}-{digest}"


@dataclass
class Harvest:
    """What `forage` brought.

    `tasks` and `tried` are numbers by kind; `left_out` counts reasons, by kind, and `repositories_left_out` has the
    reason of each. `short` is how many tasks less than asked for there are: everything was tried. `unscored` counts
    issues that were taken without a try of their solution, because they have none or the backend opens no images.
    """

    tasks: dict[str, int] = field(default_factory=dict)
    tried: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    repositories_left_out: dict[str, str] = field(default_factory=dict)
    flaky: dict[str, int] = field(default_factory=dict)
    short: int = 0
    unscored: int = 0


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
    """Write `count` tasks to `tasks.jsonl` in the folder `output`, mixed as `mix` says.

    A mutation becomes a task if it breaks at least one test and leaves at least one; tests that do not pass in two
    clean runs are disregarded. The known solution of a task, an issue's as well, is judged, and a task that it does not
    solve is left out. Issues whose solution cannot be tried here are taken as they are, and counted. Kinds without any
    candidate have no share, and what a kind that runs out lacks is divided among the others by their shares.

    Equal arguments give the same file, byte for byte, with any number of `workers` (threads, each with a machine of
    `backend`, which must open several at once). Only tests whose time is near the limit can make a difference: the
    limit is `SLACK_FACTOR` times a clean run's time and `SLACK_SECONDS`. `seconds` is a clean run's, and an issue's.

    Every outcome is on disk, in `journal.jsonl`, when the next begins: the same call goes on after an interruption.
    `progress` is called with the number of tasks that there are, and `count`; `status` with a sentence on the state of
    the work, at the beginning and whenever a repository was surveyed or a candidate was tried.

    Raises ValueError for a folder of another call, names that occur twice and a mix without any share, and
    `SandboxError` where the backend cannot run here.
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
    """The state of going through candidates."""

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
        """Take tasks by quota; what a kind lacks, the others give."""
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
        """Tasks of each kind up to those wanted; the candidates that were not needed."""
        rest: dict[str, list[Any]] = {kind: [] for kind in streams}
        harvest = self.harvest

        def needed() -> Iterator[tuple[str, Any]]:
            for kind, item in mixed(streams, shares):
                if wanted[kind] > 0:
                    yield kind, item
                else:
                    rest[kind].append(item)

        for (kind, item), outcome in self._in_order(needed()):
            if wanted[kind] == 0:  # while this one was being tried, its kind became complete
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
                reason = outcome if isinstance(outcome, str) else "the same as another"
                reasons = harvest.left_out.setdefault(kind, {})
                reasons[reason] = reasons.get(reason, 0) + 1
            done, tried = sum(harvest.tasks.values()), sum(harvest.tried.values())
            self.status(f"{done:,} of {self.count:,} tasks, {tried:,} candidates tried")
        return dict(rest)

    def _in_order(self, items: Iterator[tuple[str, Any]]) -> Iterator[tuple[tuple[str, Any], Task | str]]:
        """Each item with what became of it, in order, while others are worked on."""
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
    """Run the tests on the broken repository: the task, or the reason why it is none."""
    repository, found = candidate.repository, candidate.survey
    try:
        compile(candidate.mutation.apply(found.sources[candidate.path]), candidate.path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return "does not compile"
    limit = SLACK_SECONDS + SLACK_FACTOR * found.seconds
    try:
        machine = backend.open(repository.task(candidate.name, patch=candidate.diffs[0]))
        try:
            run = run_tests(machine, repository.test_command, seconds=limit)
        finally:
            machine.close()
    except (SandboxError, ValueError, OSError) as error:
        return f"the machine failed: {type(error).__name__}"
    if run.problem:
        return "the tests did not end" if run.completed.exceeded else "the tests made no report"
    outcomes = {name: outcome_of(name, run.outcomes) for name in found.reliable}
    fail_to_pass = tuple(name for name, outcome in outcomes.items() if outcome not in PASSED)
    pass_to_pass = tuple(name for name, outcome in outcomes.items() if outcome in PASSED)
    if not fail_to_pass:
        return "breaks no test"
    if not pass_to_pass:
        return "breaks every test"
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
    """Return whether a task's known solution can be tried: there is one, and the backend opens such tasks."""
    return bool(task.solution) and (task.folder is not None or not isinstance(backend, SandboxBackend))


def scored(task: Task, backend: Backend, seconds: float) -> Task | str:
    """Return a task if its known solution solves it, else the reason why it is left out."""
    try:
        reward = judge(task, task.solution.encode(errors="surrogateescape"), backend, seconds=seconds)
    except (SandboxError, ValueError, OSError) as error:
        return f"the machine failed: {type(error).__name__}"
    if reward.value == 1.0:
        return task
    return f"the known solution scores {reward.value:g}: {reward.reason.partition(':')[0].partition(' (')[0]}"


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
    """By kind, those of all repositories in turn, each repository's in an order drawn by the seed."""
    found: dict[str, list[list[Candidate]]] = {kind: [] for kind in KINDS if mix.get(kind, 0) > 0}
    for repository, known in surveyed:
        of_kind: dict[str, list[Candidate]] = {kind: [] for kind in found}
        for path, source in sorted(known.sources.items()):
            try:
                mutations = find_mutations(source, tuple(found))
            except ValueError:
                continue  # not a module of this Python, or of another encoding
            for mutation in mutations:
                of_kind[mutation.kind].append(Candidate(repository, known, path, mutation))
        for kind, candidates in of_kind.items():
            random.Random(f"{seed}/{repository.name}/{kind}").shuffle(candidates)
            found[kind].append(candidates)
    return {kind: list(interleaved(lists)) for kind, lists in found.items()}


class _Tasks:
    """The file of tasks. Lines that an interrupted run left are made again, and must come out the same."""

    def __init__(self, path: Path) -> None:
        self._path, self._names = path, set[str]()
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        self._expected = collections.deque(whole.splitlines(keepends=True))
        self._file = path.open("ab")

    def add(self, task: Task) -> bool:
        """Write a task; False if one of its name is there."""
        if task.name in self._names:
            return False
        self._names.add(task.name)
        line = task.to_json().encode() + b"\n"
        if not self._expected:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        elif self._expected.popleft() != line:
            raise ValueError(f"{self._path} holds other tasks than this call makes; choose another folder")
        return True

    def __enter__(self) -> "_Tasks":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


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
