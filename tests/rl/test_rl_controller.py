"""Generation, training and what joins them, on tasks that a tiny model learns in seconds."""

import json

import pytest
import torch
import toys
from cwm_core.rl.algorithm import Algorithm
from cwm_core.rl.controller import RolloutConfig
from cwm_core.rl.generation import BackgroundGenerator, EpisodeGenerator, Failure
from cwm_core.rl.processes import EngineSettings, ProcessSampler, _Server
from cwm_core.rl.records import Rollout
from cwm_core.rl.tasks import Reward
from ranks import run_ranks
from safetensors.torch import save_file
from toys import rl, same


def test_reward_rises():
    rollouts = {"fill": False, "group_size": 8, "groups": 8}
    settings = {"learning_rate": 1e-2, "schedule": "constant"}  # at 3e-2, rounding decides whether it collapses
    found, *_ = rl(steps=40, batch_size=16, rollouts=rollouts, algorithm=Algorithm(max_length=4), **settings)
    assert toys.mean(found[:4], "solved", 4) < 0.1
    assert toys.mean(found, "solved", 4) > 0.3
    assert toys.mean(found, "reward", 4) > toys.mean(found[:4], "reward", 4) + 0.8


def test_engine_and_trainer_agree():
    found, *_ = rl(steps=3, shares={"successor": 0.5, "guess": 0.5})
    for progress, _ in found:
        assert progress.metrics["engine/compared"] > 0
        assert 0 < progress.metrics["engine/largest_difference"] < 1e-4
        assert abs(progress.metrics["engine/kl"]) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_generation_equals_training_to_the_bit(dtype):
    found, *_ = rl(
        steps=3, exact=True, shares={"successor": 0.5, "guess": 0.5}, grad_accumulation=16, dtype=dtype,
        rollouts={"fill": False, "groups": 4},
    )  # fmt: skip
    for progress, metrics in found:
        assert progress.metrics["engine/compared"] > 5
        assert metrics["rollouts/trained"] <= 16
        assert progress.metrics["engine/largest_difference"] == 0.0
        assert progress.metrics["engine/kl"] == 0.0


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    class Killed(Exception):
        pass

    def kill(progress):
        if progress.step == 5:
            raise Killed

    shares = {"successor": 0.5, "guess": 0.3, "broken": 0.2}
    whole, weights, _, log = rl(steps=8, shares=shares)
    with pytest.raises(Killed):
        rl(str(tmp_path), steps=8, shares=shares, on_step=kill, checkpoint_every=3)
    rest, resumed_weights, loader, resumed_log = rl(str(tmp_path), steps=8, shares=shares, checkpoint_every=3)
    assert [progress.step for progress, _ in rest] == [4, 5, 6, 7, 8]
    for (ours, metrics), (theirs, expected) in zip(rest, whole[3:], strict=True):
        assert (ours.loss, ours.grad_norm, ours.metrics) == (theirs.loss, theirs.grad_norm, theirs.metrics)
        names = [name for name in expected if not name.startswith(("seconds", "generation", "idle"))]
        assert [metrics[name] for name in names] == [expected[name] for name in names]
    assert same(resumed_weights, weights)
    assert resumed_log == log[-len(resumed_log) :]
    trained = [entry["trained"] for entry in log if "trained" in entry]
    assert len(trained) == len(set(trained))
    assert loader.steps == 8


def rollouts_of(metrics):
    return {name: metrics[name] for name in metrics if not name.startswith(("seconds", "generation", "idle"))}


def on_ranks(settings):
    results = []
    for one in settings:
        found, weights, *_ = rl(steps=3, shares={"successor": 0.6, "broken": 0.4}, **one)
        results.append(([(p.loss, p.grad_norm, p.metrics, rollouts_of(m)) for p, m in found], weights))
    return results


def test_two_ranks_follow_one():
    runs = [{}, {"data_parallel_replicas": 2}, {"context_parallel": 2}]
    ((expected, weights),) = on_ranks([{}])
    for of_rank in run_ranks(on_ranks, 2, runs):
        for (found, others), settings in zip(of_rank, runs, strict=True):
            for (loss, norm, metrics, rollouts), (loss1, norm1, metrics1, rollouts1) in zip(
                found, expected, strict=True
            ):
                assert rollouts == pytest.approx(rollouts1), settings
                assert loss == pytest.approx(loss1, rel=1e-5)
                assert norm == pytest.approx(norm1, rel=1e-4)
                assert metrics == pytest.approx(metrics1, rel=1e-3, abs=1e-5)
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(others, weights, strict=True))


def test_versions_masks_and_turns_of_records():
    kept = []

    class Keep(Algorithm):
        def advantages(self, group):
            kept.extend(group)
            return super().advantages(group)

    toys._Guess.closed = 0
    rl(steps=3, shares={"guess": 1.0}, algorithm=Keep(max_length=8, observation_weight=0.05))
    turns = [rollout for rollout in kept if (~rollout.actions[rollout.prompt :]).any()]
    assert turns and len(turns) < len(kept)
    assert toys._Guess.closed == len(kept)
    for rollout in kept:
        assert rollout.prompt == 2 and set(rollout.versions[rollout.actions]) <= {0, 1, 2}
        observed = rollout.tokens[rollout.prompt :][~rollout.actions[rollout.prompt :]].tolist()
        # What the environment said after the first action, which a stop token ended.
        assert not observed or (len(observed) == 2 and observed[1] == 10)
        first = rollout.actions[rollout.prompt :].tolist().index(False) if observed else rollout.length
        assert (rollout.tokens[rollout.prompt + first - 1] == toys.STOP) == bool(observed)


def test_a_failing_task_costs_its_own_rollouts():
    found, _, _, log = rl(steps=2, shares={"successor": 0.5, "broken": 0.5})
    failed = [entry for entry in log if "failure" in entry]
    assert failed and all(entry["task"] == "broken" and entry["item"] % 2 == 0 for entry in failed)
    assert {entry["failure"] for entry in failed} == {"OSError: the machine is gone"}
    assert found[0][1]["dropped/failed"] > 0
    assert all("trained" not in entry or not entry["trained"].startswith("even") for entry in log)


def rollout(group, sample, value, tokens=(1, 2), logprob=-1.0, version=0):
    import numpy as np

    n = len(tokens)
    return Rollout(
        "successor", group, sample, np.array((5, *tokens), np.int32), np.arange(n + 1) > 0,
        np.array([np.nan] + [logprob] * n, np.float32), np.array([-1] + [version] * n, np.int32), 1,
        Reward(value, (), value > 0),
    )  # fmt: skip


class Given:
    """A generator of given outcomes."""

    background = False

    def __init__(self, outcomes):
        self.outcomes, self.published = list(outcomes), []

    def publish(self, model, version):
        self.published.append(version)

    def submit(self, jobs):
        self.jobs = jobs

    def collect(self):
        return [self.outcomes.pop(0)(job) for job in self.jobs]

    def metrics(self):
        return {"tokens": 0.0, "generating": 0.0, "scoring": 0.0}

    def close(self):
        pass


def test_what_cannot_be_trained_on_is_dropped_and_counted():
    outcomes = [
        lambda job: rollout(job.group, job.sample, 1.0),
        lambda job: rollout(job.group, job.sample, -1.0),
        lambda job: Failure("successor", job.group, job.sample, "gone"),
        lambda job: rollout(job.group, job.sample, -1.0, tokens=(9, 9), logprob=-9.0),
        *[lambda job: rollout(job.group, job.sample, 1.0)] * 4,
        *[lambda job: rollout(job.group, job.sample, float(job.sample), (1,) * (60 if job.sample == 3 else 2))] * 4,
    ]
    generator = Given(outcomes)
    rollouts = {"groups": 3, "fill": False, "gibberish_token": 8, "gibberish_logprob": -8.0}
    found, _, _, log = rl(steps=1, generator=generator, rollouts=rollouts)
    metrics = found[0][1]
    assert metrics["dropped/failed"] == pytest.approx(1 / 12)
    assert metrics["dropped/gibberish"] == pytest.approx(1 / 12)
    assert metrics["dropped/too long"] == pytest.approx(1 / 12)
    # One whole group, and the middle one of rewards 0, 1, 2.
    assert metrics["dropped/no advantage"] == pytest.approx(5 / 12)
    assert metrics["dropped/groups"] == pytest.approx(1 / 3)
    assert metrics["rollouts/trained"] == 4
    assert [entry["trained"] for entry in log if "trained" in entry] == [
        "successor 0/0", "successor 0/1", "successor 2/0", "successor 2/2",
    ]  # fmt: skip
    assert json.loads(json.dumps(log)) is not None


def test_old_rollouts_are_dropped():
    """A step takes one group of four, so that the others wait and grow old: the last two for more than one step."""
    outcomes = [
        lambda job: rollout(job.group, job.sample, float(job.sample), (1,) * 11, version=generator.published[-1])
    ]
    generator = Given(outcomes * 100)
    rollouts = {"groups": 4, "group_size": 2, "max_age": 1}
    found, *_ = rl(steps=6, generator=generator, rollouts=rollouts, batch_size=2, seq_len=12)
    ages = [metrics["age/largest"] for _, metrics in found]
    assert ages == [0.0, 1.0] * 3
    assert [metrics.get("dropped/stale", 0) for _, metrics in found] == [0, 0, 0.5, 0, 0.5, 0]


def test_rollouts_from_the_future_are_refused():
    with pytest.raises(RuntimeError, match="successor 0/0 is of version 3, but this is 0"):
        rl(steps=1, generator=Given([lambda job: rollout(job.group, job.sample, 1.0, version=3)] * 99))


def test_hopeless_runs_warn_and_end(monkeypatch, caplog):
    from cwm_core.rl import controller

    monkeypatch.setattr(controller, "WARN_EVERY", 8)
    monkeypatch.setattr(controller, "MAX_USELESS", 16)
    with pytest.raises(RuntimeError, match="the last 16 groups had nothing to train on"):
        rl(steps=1, generator=Given([lambda job: rollout(job.group, job.sample, 1.0)] * 999))
    assert "the last 8 groups had nothing to train on" in caplog.text


@pytest.mark.parametrize("values", [{"group_size": 0}, {"groups": 0}, {"max_age": -1}])
def test_settings_are_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        RolloutConfig(**values)


def processes(tmp_path, count=2, seed=0):
    settings = EngineSettings(toys.MODEL, torch.float32, max_batch=16, max_length=24)
    sampler = ProcessSampler(settings, ["cpu"] * count, tmp_path / "weights")
    return BackgroundGenerator(EpisodeGenerator(sampler, toys.TASKS, seed=seed))


def test_other_processes_generate_while_this_one_trains(tmp_path):
    kept = []

    class Keep(Algorithm):
        def advantages(self, group):
            kept.extend(group)
            return super().advantages(group)

    shares = {"successor": 0.4, "guess": 0.4, "broken": 0.2}
    rollouts = {"groups": 24, "max_age": 3}
    found, _, loader, log = rl(
        steps=8, shares=shares, generator=processes(tmp_path), rollouts=rollouts, algorithm=Keep(max_length=8)
    )
    ages = [metrics["age/largest"] for _, metrics in found]
    assert max(ages) > 0  # rollouts of earlier weights were trained on
    trained = [entry["trained"] for entry in log if "trained" in entry]
    assert len(trained) == len(set(trained))
    assert all(rollout.newest < 8 for rollout in kept)
    newest = {rollout.name: rollout.newest for rollout in kept}
    for entry in log:
        if "trained" in entry:
            assert entry["step"] - 1 - newest[entry["trained"]] <= 3
    # What the engines report is what the trainer computes for tokens of the present weights.
    compared = [progress.metrics for progress, _ in found if "engine/compared" in progress.metrics]
    assert compared and all(metrics["engine/largest_difference"] < 1e-4 for metrics in compared)
    assert [file.name for file in sorted((tmp_path / "weights").iterdir())] == [
        "weights-000000006.safetensors", "weights-000000007.safetensors",
    ]  # fmt: skip
    assert json.loads(json.dumps(loader.state_dict()))["open"]


def test_a_failing_process_is_reported(tmp_path):
    generator = processes(tmp_path, count=1)
    weights = tmp_path / "weights" / "weights-000000000.safetensors"
    generator._generator._sampler._writes = False
    save_file({"other": torch.zeros(2)}, weights, {"version": "0"})
    with pytest.raises(RuntimeError, match=r"(?s)generation in another process failed.*other weights than the model"):
        rl(steps=1, generator=generator)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({"version": "5"}, "weights of version 5, not 0"), (None, "weights of version None, not 0")],
)
def test_weights_of_another_version_are_refused(tmp_path, metadata, message):
    settings = EngineSettings(toys.MODEL, torch.float32, max_batch=4, max_length=24)
    save_file({"other": torch.zeros(2)}, tmp_path / "weights", metadata)
    with pytest.raises(ValueError, match=message):
        _Server(None, settings.sampler("cpu"))._load(0, tmp_path / "weights")


def test_a_killed_process_ends_the_run(tmp_path):
    generator = processes(tmp_path, count=1)
    generator._generator._sampler._processes[0]._process.kill()
    with pytest.raises(RuntimeError, match="a process that generates ended with exit code -9"):
        rl(steps=1, generator=generator)


def test_an_asynchronous_run_resumes_without_training_twice(tmp_path):
    shares = {"successor": 0.5, "guess": 0.5}
    folder = str(tmp_path / "checkpoints")
    first = rl(folder, steps=4, shares=shares, generator=processes(tmp_path, 1), schedule="constant")
    second = rl(folder, steps=8, shares=shares, generator=processes(tmp_path, 1), schedule="constant")
    assert [progress.step for progress, _ in second[0]] == [5, 6, 7, 8]
    trained = [entry["trained"] for _, _, _, log in (first, second) for entry in log if "trained" in entry]
    assert len(trained) == len(set(trained))
    # Groups that were in generation are started again.
    assert {number for number, *_ in first[2].state_dict()["open"]} & {
        entry["group"] for entry in second[3] if "group" in entry
    }
