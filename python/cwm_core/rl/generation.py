"""Generate rollouts: a sampler writes the actions of many episodes at a time, and tasks answer and score them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..inference import Engine, Handle, Request
from ..model import Transformer
from .records import Rollout
from .tasks import Episode, EpisodeTask, Reward, RLTask, start_episode

logger = logging.getLogger(__name__)

_SHORT = 0.05  # seconds

Tasks = Mapping[str, RLTask | EpisodeTask]
"""Tasks by name."""


@dataclass(frozen=True)
class Job:
    """A rollout to generate."""

    task: str
    """Name of the task."""
    group: int
    """Number of the prompt in the run."""
    sample: int
    """Number of the rollout in its group."""
    item: Any
    """Item of the task."""


@dataclass(frozen=True)
class Failure:
    """A rollout without a reward, because its task or machine failed."""

    task: str
    group: int
    sample: int
    reason: str


Outcome = Rollout | Failure


class Generator(Protocol):
    """Something that turns jobs into rollouts with the newest weights that it was given."""

    background: bool
    """True if it generates while the caller does something else."""

    def publish(self, model: Transformer, version: int) -> None:
        """Use the weights of `model`, which may be sharded, for the next tokens. All ranks call this together."""
        ...

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs."""
        ...

    def collect(self) -> list[Outcome]:
        """Wait for outcomes and return them; return none if no jobs are left."""
        ...

    def metrics(self) -> dict[str, float]:
        """Return sums since the last call: generated "tokens", and seconds of "generating" and "scoring"."""
        ...

    def close(self) -> None:
        """End all threads and processes."""
        ...


class Action(NamedTuple):
    """The tokens that a policy chose in one turn."""

    sequence: Hashable
    """Key that `Sampler.submit` returned."""
    tokens: list[int]
    logprobs: list[float]
    """Log probability of each token under the policy that chose it, in nats."""
    versions: list[int]
    """Version of that policy, for each token."""


class Sampler(Protocol):
    """Samples actions from a policy at temperature 1."""

    busy: float
    """Seconds spent on sampling so far."""

    def publish(self, model: Transformer, version: int) -> None:
        """See `Generator.publish`."""
        ...

    def submit(self, request: Request) -> Hashable:
        """Start an action; see `Engine.submit`."""
        ...

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """See `Engine.refusal`."""
        ...

    def step(self) -> list[Action]:
        """Work for a short time, and return the actions that ended."""
        ...

    def close(self) -> None:
        """End all processes."""
        ...


class EngineSampler:
    """Samples with an engine in this process, which has its own copy of the weights."""

    def __init__(self, engine: Engine) -> None:
        """Sample with `engine`, whose model the trainer does not train."""
        self.engine, self.busy, self.version = engine, 0.0, -1
        self._versions: dict[Handle, list[int]] = {}

    def publish(self, model: Transformer, version: int) -> None:
        """Copy the weights of `model` to the engine. Sequences that run keep the keys and values of earlier weights."""
        self.load(full_weights(model), version)

    def load(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copy weights by name to the engine."""
        own = dict(self.engine.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)
        self.engine.forget_prefixes()
        self.version = version

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """See `Engine.refusal`."""
        return self.engine.refusal(prompt_tokens, max_new_tokens)

    def submit(self, request: Request) -> Handle:
        """See `Engine.submit`."""
        handle = self.engine.submit(request)
        self._versions[handle] = []
        return handle

    def step(self) -> list[Action]:
        """Append a token to each running sequence."""
        began = time.monotonic()
        ended = []
        for event in self.engine.step():
            self._versions[event.handle].append(self.version)
            if event.finish_reason:
                versions = self._versions.pop(event.handle)
                ended.append(Action(event.handle, event.handle.ids, event.handle.logprobs, versions))
        self.busy += time.monotonic() - began
        return ended

    def close(self) -> None:
        """Do nothing: there are no processes."""


@dataclass(eq=False)
class _Running:
    """An episode between two steps of its generation."""

    job: Job
    episode: Episode | None = None
    tokens: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Version of each action, -1 for other tokens."""
    logprobs: list[float] = field(default_factory=list)
    prompt: int = 0
    turns: int = 0

    def append(self, tokens: Sequence[int], logprobs: Sequence[float] = (), versions: Sequence[int] = ()) -> None:
        """Append an action, or tokens that are no action."""
        self.tokens += tokens
        self.logprobs += logprobs or [float("nan")] * len(tokens)
        self.versions += versions or [-1] * len(tokens)

    def finished(self, reward: Reward) -> Rollout:
        """Return the rollout with its reward."""
        versions = np.array(self.versions, np.int32)
        return Rollout(
            self.job.task,
            self.job.group,
            self.job.sample,
            np.array(self.tokens, np.int32),
            versions >= 0,
            np.array(self.logprobs, np.float32),
            versions,
            self.prompt,
            reward,
        )


class EpisodeGenerator:
    """Runs episodes on a sampler, in turns with the caller.

    All episodes take their steps together, so that tokens do not depend on the time that tasks take. Samples depend on
    the seed, the job, and the turn.
    """

    background = False

    def __init__(self, sampler: Sampler, tasks: Tasks, *, seed: int = 0, threads: int = 4) -> None:
        """Prepare to run episodes.

        Args:
            sampler: Where actions come from.
            tasks: Tasks by name.
            seed: Seed of the samples.
            threads: Number of threads that answer and score.
        """
        self._sampler, self._tasks, self._seed = sampler, tasks, seed
        self._pool = ThreadPoolExecutor(threads, "task")
        self._acting: dict[Hashable, _Running] = {}
        self._answering: dict[Future[Any], _Running] = {}
        self._tokens, self._scoring, self._busy = 0, 0.0, 0.0

    @property
    def unfinished(self) -> int:
        """Return the number of episodes that have not ended."""
        return len(self._acting) + len(self._answering)

    def publish(self, model: Transformer, version: int) -> None:
        """See `Generator.publish`."""
        self._sampler.publish(model, version)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start the episodes of the jobs."""
        for job in jobs:
            future = self._pool.submit(start_episode, self._tasks[job.task], job.item)
            self._answering[future] = _Running(job)

    def collect(self) -> list[Outcome]:
        """Run all episodes to their ends."""
        outcomes: list[Outcome] = []
        while self.unfinished:
            self._act()
            if not self._acting:
                wait(self._answering)
                outcomes += self._take_answers()
        return outcomes

    def advance(self) -> list[Outcome]:
        """Work for a short time, and return the outcomes of episodes that ended."""
        self._act()
        if not self._acting:
            wait(self._answering, timeout=_SHORT, return_when=FIRST_COMPLETED)
        return self._take_answers()

    def metrics(self) -> dict[str, float]:
        """See `Generator.metrics`. Tasks score while others are sampled, so the seconds may overlap."""
        busy = self._sampler.busy
        metrics = {"tokens": float(self._tokens), "generating": busy - self._busy, "scoring": self._scoring}
        self._tokens, self._scoring, self._busy = 0, 0.0, busy
        return metrics

    def close(self) -> None:
        """End the sampler, and the threads after the answers that tasks are working on."""
        self._sampler.close()
        for running in [*self._acting.values(), *self._answering.values()]:
            self._end(running)
        self._pool.shutdown()

    def _act(self) -> None:
        """Let the sampler work; an action that ends goes to its task."""
        for action in self._sampler.step() if self._acting else ():
            running = self._acting.pop(action.sequence)
            running.append(*action[1:])
            self._tokens += len(action.tokens)
            self._answer(running, action.tokens)

    def _answer(self, running: _Running, action: list[int]) -> None:
        assert running.episode is not None
        self._answering[self._pool.submit(self._timed, running.episode, action)] = running

    def _timed(self, episode: Episode, action: list[int]) -> list[int] | Reward:
        began = time.monotonic()
        try:
            return episode.step(action)
        finally:
            self._scoring += time.monotonic() - began

    def _take_answers(self) -> list[Outcome]:
        """Give the answers of tasks to their episodes, and return the outcomes of those that ended."""
        ready = [future for future in self._answering if future.done()]
        outcomes = (self._continue(self._answering.pop(future), future) for future in ready)
        return [outcome for outcome in outcomes if outcome]

    def _continue(self, running: _Running, answer: Future[Any]) -> Outcome | None:
        """Let the policy act again, or return the outcome of the episode."""
        job = running.job
        try:
            result = answer.result()
            if isinstance(result, Reward):
                self._end(running)
                return running.finished(result)
            if running.episode is None:
                running.episode = result
                result = running.episode.prompt
                running.prompt = len(result)
            running.append(result)
            self._ask(running)
        except Exception as error:
            self._end(running)
            return Failure(job.task, job.group, job.sample, f"{type(error).__name__}: {error}")
        return None

    def _ask(self, running: _Running) -> None:
        """Ask for the next action, or end an episode whose context is full."""
        job, task = running.job, self._tasks[running.job.task]
        if running.turns and self._sampler.refusal(len(running.tokens), 1):
            self._answer(running, [])
            return
        seed = (self._seed, job.group, job.sample, running.turns)
        request = Request(running.tokens, task.max_tokens, task.stop_tokens, temperature=1.0, seed=seed)
        self._acting[self._sampler.submit(request)] = running
        running.turns += 1

    def _end(self, running: _Running) -> None:
        if running.episode is not None:
            self._pool.submit(_close, running.episode)


class BackgroundGenerator:
    """Runs episodes in a thread while the caller trains, on a sampler of other processes."""

    background = True

    def __init__(self, generator: EpisodeGenerator) -> None:
        """Start to work on the episodes of `generator`, which only this object may use from now on."""
        self._generator = generator
        self._jobs: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[list[Outcome] | BaseException] = queue.SimpleQueue()
        self._unfinished = 0
        self._thread = threading.Thread(target=self._serve, name="rollouts", daemon=True)
        self._thread.start()

    def publish(self, model: Transformer, version: int) -> None:
        """See `Generator.publish`."""
        self._generator.publish(model, version)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Add jobs."""
        self._unfinished += len(jobs)
        self._jobs.put(list(jobs))

    def collect(self) -> list[Outcome]:
        """Wait for an outcome, and return all that there are; raise what the thread raised."""
        outcomes: list[Outcome] = []
        while self._unfinished and (not outcomes or not self._outcomes.empty()):
            found = self._outcomes.get()
            if isinstance(found, BaseException):
                raise found
            outcomes += found
            self._unfinished -= len(found)
        return outcomes

    def metrics(self) -> dict[str, float]:
        """See `Generator.metrics`."""
        return self._generator.metrics()

    def close(self) -> None:
        """End the thread and the generator."""
        self._jobs.put(None)
        self._thread.join()
        self._generator.close()

    def _serve(self) -> None:
        try:
            while True:
                while not self._generator.unfinished or not self._jobs.empty():
                    jobs = self._jobs.get()
                    if jobs is None:
                        return
                    self._generator.submit(jobs)
                if outcomes := self._generator.advance():
                    self._outcomes.put(outcomes)
        except BaseException as error:
            self._outcomes.put(error)


def full_weights(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and all of each parameter, gathered from its shards; all ranks iterate together."""
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        yield name, weight.full_tensor() if isinstance(weight, DTensor) else weight


def _close(episode: Episode) -> None:
    try:
        episode.close()
    except Exception:
        logger.exception("an episode could not release its machine")
