"""Roll out agents on tasks concurrently, and save the trajectories to a file."""

import contextlib
import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

from ..machines import Backend
from ..support.cluster import ray_cluster
from .agents import (
    Agent,
    Budget,
    EndReason,
    Generate,
    Message,
    OutOfBudget,
    Reply,
    ReplyEnd,
    system_prompt,
)
from .environment import Transition
from .rewards import RewardFunction
from .tasks import Task
from .tools import Tool, tools_by_name
from .trajectories import Trajectory, TrajectoryWriter, Turn, task_digest
from .workers import EXTRA_SECONDS, EnvironmentWorker, ProcessWorker, ray_workers

FILE = "trajectories.jsonl"
LAST_WORDS = 2.0  # seconds for an interrupted agent to notice


class RolloutEnvironment(Protocol):
    """The part of `Environment` and `EnvironmentWorker` that a rollout uses."""

    def start(self, task: Task) -> str:
        """Start an episode and return the first observation."""
        ...

    def step(self, action_text: str, /) -> Transition:
        """Carry out an action and return the result."""
        ...


def rollout(
    environment: RolloutEnvironment,
    agent: Agent,
    task: Task,
    *,
    name: str,
    seed: int,
    budget: Budget | None = None,
    system: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Trajectory:
    """Roll out an agent on a task until the episode or the agent's budget ends.

    Errors do not raise: the trajectory records the failure. If the agent runs out of budget, its submission is judged.

    Args:
        environment: The environment.
        agent: The agent.
        task: The task.
        name: Name of the trajectory.
        seed: Seed of the agent's sampling.
        budget: Limits of the rollout; None is `Budget()`.
        system: The system message; None is `system_prompt()`, "" is none.
        settings: Further settings to record.
    """
    budget = budget or Budget()
    system = system_prompt() if system is None else system
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    turns: list[Turn] = []
    started, clock = time.time(), time.monotonic()
    reward, reason, end, failure = 0.0, "", EndReason.FAILED, None
    try:
        messages.append({"role": "user", "content": environment.start(task)})
        generate = agent.start(task, seed, budget)
        last, end = _converse(environment, generate, messages, turns, budget)
        reward, reason = float(last.reward), last.reason
    except Exception as error:
        end, failure = EndReason.FAILED, f"{type(error).__name__}: {error}"
    first = 2 if system else 1
    everything = _settings(agent, budget, settings or {})
    seconds = time.monotonic() - clock
    return Trajectory(
        name, task, seed, everything, tuple(messages[:first]), tuple(turns), reward, reason, end, failure, started,
        seconds,
    )  # fmt: skip


def _converse(
    environment: RolloutEnvironment, generate: Generate, messages: list[Message], turns: list[Turn], budget: Budget
) -> tuple[Transition, EndReason]:
    """Alternate between agent and environment; return the last transition and the reason of the end."""
    clock = time.monotonic()
    while True:
        before = time.monotonic()
        try:
            reply = _checked(generate(messages))
        except OutOfBudget as spent:
            return environment.step(""), spent.end
        between = time.monotonic()
        said = (reply.finish, reply.ids, reply.logprobs, reply.tokens, reply.prompt_tokens, reply.cached_tokens)
        if reply.finish == ReplyEnd.LENGTH:
            turns.append(Turn(reply.text, "", "user", None, 0.0, between - before, *said))
            return environment.step(""), EndReason.ACTION_TOKENS
        after = environment.step(reply.text)
        seconds, role = time.monotonic() - between, after.role
        turns.append(Turn(reply.text, after.observation, role, after.exit_code, seconds, between - before, *said))
        messages.append({"role": "assistant", "content": reply.text})
        if after.observation:
            messages.append({"role": role, "content": after.observation})
        if after.done:
            return after, _end(after, len(turns), time.monotonic() - clock, budget)


def _checked(reply: Reply | str) -> Reply:
    """Return a reply in types that a file of trajectories can hold. Raise TypeError or ValueError for others."""
    reply = Reply(reply) if isinstance(reply, str) else reply
    if not isinstance(reply, Reply) or not isinstance(reply.text, str):
        raise TypeError(f"an agent must reply with a string or a Reply, got {type(reply).__name__}")
    ids = None if reply.ids is None else tuple(int(token) for token in reply.ids)
    logprobs = reply.logprobs
    if logprobs is not None:
        logprobs = tuple(None if value is None else float(value) for value in logprobs)
    return replace(reply, finish=ReplyEnd(reply.finish), ids=ids, logprobs=logprobs)


def _end(last: Transition, turns: int, seconds: float, budget: Budget) -> EndReason:
    if not last.observation:
        return EndReason.DONE
    if turns >= budget.turns:
        return EndReason.TURNS
    if seconds >= budget.seconds:
        return EndReason.SECONDS
    return EndReason.MALFORMED if last.role == "user" else EndReason.CONTEXT_TOKENS


@dataclass(frozen=True)
class _Job:
    name: str
    task: Task
    seed: int


def run_rollouts(
    tasks: Iterable[Task],
    agent: Agent,
    folder: str | os.PathLike[str],
    *,
    samples: int = 1,
    seed: int = 0,
    budget: Budget | None = None,
    backend: Backend | None = None,
    workers: int | None = None,
    ray: bool = False,
    system: str | None = None,
    tools: Iterable[Tool] = (),
    reward: RewardFunction | None = None,
    environment: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, Trajectory | None], object] | None = None,
) -> int:
    """Roll out an agent on each task and append the trajectories to `trajectories.jsonl` in a folder.

    Rollouts that the file contains are not repeated. So after any interruption, the same call resumes. An error in a
    rollout is recorded as its failure. No process remains when this function returns or raises.

    Args:
        tasks: The tasks, with unique names.
        agent: The agent, called from a thread for each worker.
        folder: The folder, created if necessary.
        samples: Number of rollouts of each task, named `TASK/0`, `TASK/1`, and so on.
        seed: Seed. The seed of a rollout depends on it and on the rollout's name.
        budget: Limits of each rollout; None is `Budget()`.
        backend: See `Environment`. It is sent to other processes.
        workers: Number of concurrent rollouts. Defaults to the number of processors.
        ray: Run the environments on a Ray cluster; see `support.cluster.ray_cluster`. The agent stays in this process.
            The tasks' folders must exist on the cluster under the same paths.
        system: The system message; None is `system_prompt(tools=tools)`, "" is none.
        tools: Tools in addition to the built-in ones; like `reward`, from a module that worker processes can import.
        reward: Judges the submitted diffs; None is `judge`.
        environment: Further arguments of `Environment`.
        settings: Further settings to record. They must equal those in the file.
        progress: Called with the number of finished rollouts, the number of all rollouts, and the newest trajectory or,
            at first, None.

    Returns:
        The number of added trajectories.

    Raises:
        ValueError: Two tasks have the same name, or the file is damaged or has other settings or tasks.
        BlockingIOError: Another run writes to the file.
    """
    budget = budget or Budget()
    options: dict[str, Any] = {
        "seconds": budget.seconds,
        "command_seconds": budget.command_seconds,
        "max_turns": budget.turns,
    }
    named = tools_by_name(tools)
    extensions: dict[str, Any] = {}
    if named:
        options["tools"] = tuple(named.values())
        extensions["tools"] = sorted(named)
    if reward is not None:
        options["reward"] = reward
        extensions["reward"] = getattr(reward, "__qualname__", type(reward).__qualname__)
    options |= environment or {}
    jobs = _jobs(tasks, samples, seed)
    system = system_prompt(tools=named.values()) if system is None else system
    digest = hashlib.sha256(system.encode(errors="surrogatepass")).hexdigest()[:16]
    more = {"system": digest, "seed": seed, **extensions, **(settings or {})}
    Path(folder).mkdir(parents=True, exist_ok=True)
    with TrajectoryWriter(Path(folder) / FILE) as writer:
        _check_same(folder, writer, _settings(agent, budget, more), jobs)
        todo = [job for job in jobs if job.name not in writer.names]
        done = len(jobs) - len(todo)
        if progress:
            progress(done, len(jobs), None)
        if not todo:
            return 0
        seconds = budget.seconds + EXTRA_SECONDS
        with contextlib.ExitStack() as stack:
            connect: Callable[[], EnvironmentWorker]
            if ray:
                cluster = stack.enter_context(ray_cluster())
                connect, workers = ray_workers(cluster, backend, options, seconds, workers)
            else:
                connect = partial(ProcessWorker, backend, options, seconds)
                workers = workers or os.cpu_count() or 1

            def work(worker: EnvironmentWorker, job: _Job) -> Trajectory:
                return rollout(
                    worker, agent, job.task, name=job.name, seed=job.seed, budget=budget, system=system, settings=more
                )

            crew = stack.enter_context(_Crew(work, todo, connect, min(workers, len(todo)), agent.interrupt))
            for trajectory in crew:
                writer.add(trajectory)
                done += 1
                if progress:
                    progress(done, len(jobs), trajectory)
        return len(todo)


def _jobs(tasks: Iterable[Task], samples: int, seed: int) -> list[_Job]:
    jobs: dict[str, _Job] = {}
    for task in tasks:
        for number in range(samples):
            name = f"{task.name}/{number}"
            if name in jobs:
                raise ValueError(f"there are two tasks named {task.name!r}")
            digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass")).digest()
            jobs[name] = _Job(name, task, int.from_bytes(digest[:6], "big"))
    return list(jobs.values())


def _settings(agent: Agent, budget: Budget, more: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in JSON types. Raise ValueError or TypeError for other types."""
    text = json.dumps({**agent.settings, "budget": asdict(budget), **more}, allow_nan=False)
    settings: dict[str, Any] = json.loads(text)
    return settings


def _check_same(
    folder: str | os.PathLike[str], writer: TrajectoryWriter, settings: dict[str, Any], jobs: Sequence[_Job]
) -> None:
    """Raise ValueError if the trajectories in the file have other settings or tasks."""
    old = settings if writer.settings is None else writer.settings
    for name in [*settings, *(old.keys() - settings.keys())]:
        if old.get(name) != settings.get(name):
            raise ValueError(
                f"{os.fspath(folder)} holds rollouts with {name} = {old.get(name)!r}, not {settings.get(name)!r}; "
                "choose another folder or the same settings"
            )
    for job in jobs:
        if writer.names.get(job.name, digest := task_digest(job.task)) != digest:
            raise ValueError(f"{os.fspath(folder)} holds a rollout of another task named {job.task.name!r}")


class _Crew:
    """Threads with a worker each, and their results; a context manager that ends all of them."""

    def __init__(
        self,
        work: Callable[[EnvironmentWorker, _Job], Trajectory],
        jobs: Sequence[_Job],
        connect: Callable[[], EnvironmentWorker],
        count: int,
        interrupt: Callable[[], None],
    ) -> None:
        self._work, self._connect, self._interrupt, self._jobs = work, connect, interrupt, len(jobs)
        self._waiting: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for job in jobs:
            self._waiting.put(job)
        self._finished: queue.SimpleQueue[Trajectory | BaseException] = queue.SimpleQueue()
        self._stopping = False
        self._changing = threading.Lock()
        """Held while a worker starts or stops, so that none starts after `__exit__` has begun."""
        self._workers: dict[int, EnvironmentWorker] = {}
        self._threads = [threading.Thread(target=self._serve, args=(i,), daemon=True) for i in range(count)]

    def _serve(self, place: int) -> None:
        try:
            with contextlib.suppress(queue.Empty):
                while worker := self._worker(place):
                    trajectory = self._work(worker, self._waiting.get_nowait())
                    if trajectory.failure is not None:  # the worker may be broken, and a new one is cheap
                        self._discard(place)
                    self._finished.put(trajectory)
        except BaseException as error:
            self._finished.put(error)
        finally:
            self._discard(place)

    def _worker(self, place: int) -> EnvironmentWorker | None:
        with self._changing:
            if self._stopping:
                return None
            if place not in self._workers:
                self._workers[place] = self._connect()
            return self._workers[place]

    def _discard(self, place: int) -> None:
        with self._changing:
            worker = self._workers.pop(place, None)
        if worker:
            worker.close()

    def __iter__(self) -> Iterator[Trajectory]:
        for _ in range(self._jobs):
            outcome = self._finished.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changing:
            self._stopping = True
            workers = list(self._workers.values())
        closers = [threading.Thread(target=worker.close) for worker in workers]
        for thread in closers:
            thread.start()
        for thread in closers:
            thread.join()
        # The remaining threads wait for the agent. Those that wait for an endpoint end with this process.
        deadline = time.monotonic() + LAST_WORDS
        while time.monotonic() < deadline and any(thread.is_alive() for thread in self._threads):
            self._interrupt()
            time.sleep(0.02)
