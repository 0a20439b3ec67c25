"""The loop around training: generate rollouts, score them, assign weights to tokens, and hand over batches.

`RolloutLoader` is the loader of a `Trainer`. Each optimizer step asks it for batches; the loader then gives the newest
weights to the generator, collects rollouts until the rows of the step are full, and returns the rows.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import torch.distributed as dist

from ..model import Transformer
from ..support.arguments import convert_fields
from ..training import World
from .algorithm import Algorithm, Weights
from .batches import RolloutBatch, make_batch, place
from .generation import Failure, Generator, Job, Outcome
from .records import Rollout
from .tasks import Curriculum

logger = logging.getLogger(__name__)

# Consecutive groups without anything to train on: after how many to warn, and to give up.
WARN_EVERY = 64
MAX_USELESS = 1024


@dataclass(frozen=True)
class RolloutConfig:
    """Which rollouts are generated and trained on: the table `[rollouts]`.

    Raises:
        ValueError: A value is out of range; the message names the key.
    """

    group_size: int = 8
    """Rollouts of each prompt."""
    groups: int = 16
    """Prompts in generation at a time, over all ranks."""
    fill: bool = True
    """Wait until the rows of a step are full: batches formed by number of tokens (arXiv 2510.02387). Otherwise a
    step takes the rollouts of `groups` prompts."""
    max_age: int = 100
    """A rollout is dropped if its newest action is older than this number of steps (published: 100)."""
    gibberish_token: int = 100_000
    """A rollout is gibberish if an action has an id above this (rare tokens of the published vocabulary) and a log
    probability below `gibberish_logprob`; it is dropped. 0 keeps all."""
    gibberish_logprob: float = -math.log(128_256) - 2
    """Log probability in nats; published: -log(vocabulary) - 2 (arXiv 2510.02387)."""

    def __post_init__(self) -> None:
        """Check the values."""
        convert_fields(self)
        if min(self.group_size, self.groups) < 1:
            raise ValueError(f"group_size and groups must be positive, got {self.group_size} and {self.groups}")
        if min(self.max_age, self.gibberish_token) < 0:
            raise ValueError("max_age and gibberish_token must not be negative")

    def is_gibberish(self, rollout: Rollout) -> bool:
        """Return whether a rare token was chosen although the policy found it very unlikely."""
        rare = rollout.tokens > self.gibberish_token
        return bool(self.gibberish_token and (rare & (rollout.logprobs < self.gibberish_logprob)).any())


@dataclass
class _Group:
    """A prompt in generation."""

    task: str
    item: int
    outcomes: list[Outcome] = field(default_factory=list)


class RolloutLoader:
    """Batches of rollouts of the newest weights, for one optimizer step after the other.

    All ranks have equal states: each generates its share of the prompts, and all learn of all outcomes. So a step has
    the same rollouts on any number of ranks, and every rank can say which rows are whose.
    """

    def __init__(
        self,
        model: Transformer,
        generator: Generator,
        *,
        items: Mapping[str, Sequence[Any]],
        curriculum: Curriculum,
        algorithm: Algorithm,
        config: RolloutConfig,
        world: World,
        seq_len: int,
        batch_size: int,
        batches: int = 1,
        whole_rows: bool = False,
        log: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Generate with `generator` from the items that `curriculum` draws.

        Args:
            model: Model that is trained.
            generator: Generator of this rank.
            items: Items of each task.
            curriculum: Draws the items, equally on all ranks.
            algorithm: Assigns weights to tokens.
            config: Which rollouts to use.
            world: Ranks of the run.
            seq_len: Tokens of a row.
            batch_size: Rows of a batch, over all ranks.
            batches: Batches of a step.
            whole_rows: See `make_batch`.
            log: Function called with a description of each outcome, and of each rollout that is trained on.

        Raises:
            ValueError: The ranks do not divide `batch_size`.
        """
        if batch_size % world.data_ranks:
            raise ValueError(f"{world.data_ranks} ranks cannot share {batch_size} rows (batch_size)")
        self.sources = sorted(items)
        self.steps = 0
        """Steps whose batches were handed over. This is the version of the weights while the next step is prepared."""
        self.metrics: dict[str, float] = {}
        """Metrics of the last step."""
        self._model, self._generator, self._items, self._curriculum = model, generator, items, curriculum
        self._algorithm, self._config, self._world = algorithm, config, world
        self._seq_len, self._batch_size, self._batches, self._whole_rows = seq_len, batch_size, batches, whole_rows
        rows = {"seq_len": seq_len, "batch_size": batch_size, "whole_rows": whole_rows}
        self._settings: dict[str, Any] = {**asdict(algorithm), **asdict(config), **rows}
        self._log = log or (lambda _: None)
        self._next_group = 0
        self._open: dict[int, _Group] = {}
        self._buffer: deque[tuple[Rollout, Weights]] = deque()
        self._ready: deque[RolloutBatch] = deque()
        self._useless = 0
        self._handed_over = time.monotonic()
        self._counts = _Counts()

    def __iter__(self) -> Self:
        """Return the loader."""
        return self

    def __next__(self) -> RolloutBatch:
        """Return the next batch of this rank; generate first if the batches of a step are used up.

        Raises:
            RuntimeError: No group of the last `MAX_USELESS` had anything to train on.
        """
        if not self._ready:
            self._prepare()
        return self._ready.popleft()

    def _prepare(self) -> None:
        """Collect the rollouts of a step, and make its batches."""
        began = time.monotonic()
        version = self.steps
        self._generator.publish(self._model, version)
        while True:
            if self._generator.background:
                self._request(version)
            if rows := self._take(version):
                break
            if not self._generator.background:
                self._request(version)
            self._receive(self._gather(self._generator.collect()), version)
        rollouts = [rollout for row in rows for rollout, _ in row]
        weights = iter(self._algorithm.weights(rollouts, [advantage for row in rows for _, advantage in row]))
        weighted = [[(rollout, next(weights)) for rollout, _ in row] for row in rows]
        share = self._batch_size // self._world.data_ranks
        for batch in range(self._batches):
            first = batch * self._batch_size + self._world.data_rank * share
            own = weighted[first : first + share]
            self._ready.append(make_batch(own, self._seq_len, version, self.sources, self._whole_rows))
        for rollout in rollouts:
            self._log({"trained": rollout.name, "step": version + 1})
        now = time.monotonic()
        training = began - self._handed_over
        self._handed_over = now
        self._report(rollouts, version, now - began, training)
        self.steps += 1

    def _request(self, version: int) -> None:
        """Start groups until the wanted number is in generation."""
        jobs = []
        while len(self._open) < self._config.groups:
            group = _Group(*self._curriculum.draw(version))
            self._open[self._next_group] = group
            jobs += self._jobs(self._next_group, group)
            self._next_group += 1
        self._generator.submit(jobs)

    def _jobs(self, number: int, group: _Group) -> list[Job]:
        """Return the jobs of a group for this rank: all, or none."""
        world = self._world
        if not world.is_first_reader or number % world.data_ranks != world.data_rank:
            return []
        item = self._items[group.task][group.item]
        return [Job(group.task, number, sample, item) for sample in range(self._config.group_size)]

    def _gather(self, outcomes: list[Outcome]) -> list[Outcome]:
        """Return the outcomes of all ranks, in an order that does not depend on the ranks."""
        if self._world.size > 1:
            parts: list[list[Outcome]] = [[] for _ in range(self._world.size)]
            dist.all_gather_object(parts, outcomes)
            outcomes = [outcome for part in parts for outcome in part]
        return sorted(outcomes, key=lambda outcome: (outcome.group, outcome.sample))

    def _receive(self, outcomes: Sequence[Outcome], version: int) -> None:
        """Add outcomes to their groups, and the rollouts of complete groups to the buffer."""
        for outcome in outcomes:
            group = self._open[outcome.group]
            group.outcomes.append(outcome)
            if isinstance(outcome, Rollout) and outcome.newest > version:
                raise RuntimeError(f"rollout {outcome.name} is of version {outcome.newest}, but this is {version}")
            if len(group.outcomes) == self._config.group_size:
                self._finish(group)
                del self._open[outcome.group]

    def _finish(self, group: _Group) -> None:
        """Assign advantages to a complete group, and keep what can be trained on."""
        reasons = [self._fault(outcome) for outcome in group.outcomes]
        pairs = zip(group.outcomes, reasons, strict=True)
        kept = [outcome for outcome, reason in pairs if isinstance(outcome, Rollout) and not reason]
        useful = 0
        for rollout, advantage in zip(kept, self._algorithm.advantages(kept) if kept else (), strict=True):
            if advantage.any():
                self._buffer.append((rollout, advantage))
                useful += 1
            else:
                reasons[group.outcomes.index(rollout)] = "no advantage"
        for outcome, reason in zip(group.outcomes, reasons, strict=True):
            self._counts.add(group.task, outcome, reason)
            self._log(_description(outcome, group.item, reason))
        solved = [outcome.reward.solved for outcome in group.outcomes if isinstance(outcome, Rollout)]
        if solved:
            self._curriculum.report(group.task, group.item, sum(solved) / len(solved))
        self._counts.groups += 1
        self._counts.useless_groups += not useful
        self._useless = 0 if useful else self._useless + 1
        self._check_progress()

    def _check_progress(self) -> None:
        """Warn of many groups in a row without anything to train on, and raise RuntimeError in the end."""
        if not self._useless or self._useless % WARN_EVERY:
            return
        text = (
            f"the last {self._useless} groups had nothing to train on: their rollouts failed, were dropped, or had "
            "equal rewards; choose items with other solve rates, or start from a better model"
        )
        if self._useless >= MAX_USELESS:
            raise RuntimeError(text)
        logger.warning("%s", text)

    def _fault(self, outcome: Outcome) -> str:
        """Return why an outcome cannot be trained on; empty if it can."""
        if isinstance(outcome, Failure):
            return "failed"
        if len(outcome.tokens) > self._seq_len:
            return "too long"
        if self._config.is_gibberish(outcome):
            return "gibberish"
        return ""

    def _take(self, version: int) -> list[list[tuple[Rollout, Weights]]] | None:
        """Return the rows of a step, and remove their rollouts from the buffer; None if there are too few."""
        fresh = deque(pair for pair in self._buffer if version - pair[0].newest <= self._config.max_age)
        self._counts.dropped["stale"] += len(self._buffer) - len(fresh)
        self._buffer = fresh
        rows: list[list[tuple[Rollout, Weights]]] = [[] for _ in range(self._batch_size * self._batches)]
        room = [1 if self._whole_rows else self._seq_len] * len(rows)
        taken = 0
        for pair in self._buffer:
            row = place(room, 1 if self._whole_rows else len(pair[0].tokens))
            if row is None:
                break
            rows[row].append(pair)
            taken += 1
        else:
            if self._config.fill or not taken:
                return None
        for _ in range(taken):
            self._buffer.popleft()
        return rows

    def _report(self, trained: Sequence[Rollout], version: int, generating: float, training: float) -> None:
        """Compute the metrics of a step."""
        own = self._generator.metrics()
        ages = np.concatenate([version - rollout.versions[rollout.actions] for rollout in trained])
        tokens, most, scoring = self._world.max([own["tokens"], own["generating"], own["scoring"]])
        counts, self._counts = self._counts, _Counts()
        self.metrics = {
            **counts.metrics(),
            "rollouts/trained": float(len(trained)),
            "rollouts/actions": float(len(ages)),
            "rollouts/fill": sum(len(r.tokens) for r in trained) / (self._batch_size * self._batches * self._seq_len),
            "rollouts/waiting": float(len(self._buffer)),
            "age/mean": float(ages.mean()),
            "age/largest": float(ages.max()),
            "seconds/waiting_for_rollouts": generating,
            "seconds/training": training,
            "seconds/generating": most,
            "seconds/scoring": scoring,
            "idle/training": generating / (generating + training),
            "idle/generation": max(0.0, 1 - most / (generating + training)),
            "generation/tokens_per_second": tokens / most if most else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two steps, fit for JSON. Groups in generation are started again from it."""
        return {
            "settings": self._settings,
            "steps": self.steps,
            "next_group": self._next_group,
            "open": [[number, group.task, group.item] for number, group in self._open.items()],
            "buffer": [[rollout.to_dict(), advantage[rollout.actions].tolist()] for rollout, advantage in self._buffer],
            "useless": self._useless,
            "curriculum": self._curriculum.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to a position, and start its open groups again.

        Raises:
            ValueError: The run to resume has other settings.
        """
        for key, value in self._settings.items():
            if state["settings"].get(key) != value:
                before = state["settings"].get(key)
                raise ValueError(
                    f"the run to resume has {key} = {before!r}, not {value!r}: keep the setting, or use another output "
                    "folder"
                )
        self._curriculum.load_state_dict(state["curriculum"])
        self.steps, self._next_group, self._useless = state["steps"], state["next_group"], state["useless"]
        self._open = {number: _Group(task, item) for number, task, item in state["open"]}
        self._buffer.clear()
        for values, of_actions in state["buffer"]:
            rollout = Rollout.from_dict(values)
            advantage = np.zeros(len(rollout.tokens))
            advantage[rollout.actions] = of_actions
            self._buffer.append((rollout, advantage))
        self._generator.submit([job for number, group in self._open.items() for job in self._jobs(number, group)])


class _Counts:
    """Outcomes of the groups that ended since the last step."""

    def __init__(self) -> None:
        self.rewards: dict[str, list[tuple[float, bool, int]]] = {}
        self.dropped: Counter[str] = Counter()
        self.total = self.groups = self.useless_groups = 0

    def add(self, task: str, outcome: Outcome, reason: str) -> None:
        """Count an outcome, and the reason to drop it."""
        self.total += 1
        if reason:
            self.dropped[reason] += 1
        if isinstance(outcome, Rollout):
            of_task = self.rewards.setdefault(task, [])
            of_task.append((outcome.reward.value, outcome.reward.solved, outcome.length))

    def metrics(self) -> dict[str, float]:
        """Return mean reward, solve rate and length, in total and by task, and shares of what is dropped."""
        metrics: dict[str, float] = {}
        everything = [values for of_task in self.rewards.values() for values in of_task]
        for task, values in {"": everything, **self.rewards}.items():
            if values:
                for name, mean in zip(("reward", "solved", "length"), np.mean(values, axis=0), strict=True):
                    metrics[f"{name}/{task}" if task else name] = float(mean)
        if self.total:
            metrics |= {f"dropped/{reason}": count / self.total for reason, count in self.dropped.items() if count}
        if self.groups:
            metrics["dropped/groups"] = self.useless_groups / self.groups
        return metrics


def _description(outcome: Outcome, item: int, reason: str) -> dict[str, Any]:
    """Return an outcome for the log."""
    values: dict[str, Any] = {"task": outcome.task, "group": outcome.group, "sample": outcome.sample, "item": item}
    if isinstance(outcome, Failure):
        return values | {"dropped": reason, "failure": outcome.reason}
    versions = outcome.versions[outcome.actions]
    return values | {
        "reward": outcome.reward.value,
        "solved": outcome.reward.solved,
        "reasons": outcome.reward.reasons,
        "tokens": len(outcome.tokens),
        "actions": outcome.length,
        "oldest": int(versions.min()),
        "newest": int(versions.max()),
        "dropped": reason,
    }
