"""Generate rollouts: the engine writes the actions of many episodes at a time, and tasks answer and score them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..inference import Engine, Event, Handle, Request
from ..model import Transformer
from .records import Rollout
from .tasks import Episode, EpisodeTask, Reward, RLTask, start_episode

logger = logging.getLogger(__name__)

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
    """Whether it generates while the caller does something else."""

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


class Sampler(Protocol):
    """The part of `Engine` that generates."""

    def submit(self, request: Request) -> Handle:
        """See `Engine.submit`."""
        ...

    def refusal(self, prompt_tokens: int, max_new_tokens: int) -> str | None:
        """See `Engine.refusal`."""
        ...

    def step(self) -> list[Event]:
        """See `Engine.step`."""
        ...


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

    def append(self, tokens: Sequence[int]) -> None:
        """Append tokens that are no actions."""
        self.tokens += tokens
        self.versions += [-1] * len(tokens)
        self.logprobs += [float("nan")] * len(tokens)

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
    """Runs episodes on a sampler in this process, at temperature 1.

    Log probabilities are those of the distribution that was sampled from. Samples depend on the seed, the job, and the
    turn. If `background` is false, all episodes take their steps together, so that the tokens do not depend on the time
    that tasks take.
    """

    def __init__(
        self, sampler: Sampler, tasks: Tasks, *, seed: int = 0, threads: int = 4, background: bool = False
    ) -> None:
        """Prepare to run episodes.

        Args:
            sampler: Where tokens come from.
            tasks: Tasks by name.
            seed: Seed of the samples.
            threads: Number of threads that answer and score.
            background: Whether `collect` returns the first outcome instead of all.
        """
        self.background = background
        self.version = -1
        """Version of the weights of the sampler."""
        self._sampler, self._tasks, self._seed = sampler, tasks, seed
        self._pool = ThreadPoolExecutor(threads, "task")
        self._generating: dict[Handle, _Running] = {}
        self._answering: dict[Future[Any], _Running] = {}
        self._tokens, self._seconds = 0, {"generating": 0.0, "scoring": 0.0}

    def publish(self, model: Transformer, version: int) -> None:
        """Set the version. The sampler has the weights of `model`."""
        self.version = version

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start the episodes of the jobs."""
        for job in jobs:
            future = self._pool.submit(start_episode, self._tasks[job.task], job.item)
            self._answering[future] = _Running(job)

    def collect(self) -> list[Outcome]:
        """Generate until all episodes have ended; with `background`, until one has ended."""
        outcomes: list[Outcome] = []
        while (self._generating or self._answering) and not (self.background and outcomes):
            if self._generating:
                self._generate()
            if self.background or not self._generating:
                outcomes += self._take_answers()
        return outcomes

    def metrics(self) -> dict[str, float]:
        """See `Generator.metrics`. Tasks score while the engine generates, so the seconds may overlap."""
        metrics = {"tokens": float(self._tokens), **self._seconds}
        self._tokens, self._seconds = 0, dict.fromkeys(self._seconds, 0.0)
        return metrics

    def close(self) -> None:
        """End the threads, after the answers that tasks are working on."""
        for running in [*self._generating.values(), *self._answering.values()]:
            self._end(running)
        self._pool.shutdown(cancel_futures=False)

    def _generate(self) -> None:
        """Append one token to the action of each episode; an action that ends goes to its task."""
        began = time.monotonic()
        for event in self._sampler.step():
            running = self._generating[event.handle]
            assert event.token is not None  # there are no constraints
            running.tokens.append(event.token)
            running.versions.append(self.version)
            running.logprobs.append(event.logprob)
            self._tokens += 1
            if event.finish_reason:
                del self._generating[event.handle]
                self._answer(running, event.handle.ids)
        self._seconds["generating"] += time.monotonic() - began

    def _answer(self, running: _Running, action: list[int]) -> None:
        assert running.episode is not None
        self._answering[self._pool.submit(self._timed, running.episode, action)] = running

    def _timed(self, episode: Episode, action: list[int]) -> list[int] | Reward:
        began = time.monotonic()
        try:
            return episode.step(action)
        finally:
            self._seconds["scoring"] += time.monotonic() - began

    def _take_answers(self) -> list[Outcome]:
        """Give the answers of tasks to their episodes: those that are ready, or all; return the ends."""
        if not self.background:
            wait(self._answering)
        elif not self._generating:
            wait(self._answering, return_when=FIRST_COMPLETED)
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
            self._act(running)
        except Exception as error:
            self._end(running)
            return Failure(job.task, job.group, job.sample, f"{type(error).__name__}: {error}")
        return None

    def _act(self, running: _Running) -> None:
        """Ask for the next action, or end an episode whose context is full."""
        job, task = running.job, self._tasks[running.job.task]
        if running.turns and self._sampler.refusal(len(running.tokens), 1):
            self._answer(running, [])
            return
        seed = (self._seed, job.group, job.sample, running.turns)
        request = Request(running.tokens, task.max_tokens, task.stop_tokens, temperature=1.0, seed=seed)
        self._generating[self._sampler.submit(request)] = running
        running.turns += 1

    def _end(self, running: _Running) -> None:
        if running.episode is not None:
            self._pool.submit(_close, running.episode)


class EngineGenerator(EpisodeGenerator):
    """Runs episodes on an engine with its own copy of the weights, which `publish` replaces in memory."""

    def __init__(
        self,
        engine: Engine,
        tasks: Tasks,
        *,
        seed: int = 0,
        threads: int = 4,
        background: bool = False,
    ) -> None:
        """Generate with `engine`, whose model the trainer does not train; other arguments as in `EpisodeGenerator`."""
        super().__init__(engine, tasks, seed=seed, threads=threads, background=background)
        self._engine = engine

    def publish(self, model: Transformer, version: int) -> None:
        """Copy the weights of `model` to the engine. Sequences that run keep the keys and values of earlier weights."""
        self.load(full_weights(model), version)

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Copy weights by name to the engine."""
        own = dict(self._engine.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)
        self._engine.forget_prefixes()
        self.version = version


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
