"""Loss and weights of tokens against plain float64 formulas, and the gradient against finite differences."""

import math

import numpy as np
import pytest
import torch
from cwm_core.model import Transformer, cross_entropy, preset
from cwm_core.rl.algorithm import Algorithm
from cwm_core.rl.batches import make_batch, place
from cwm_core.rl.loss import LossConfig, PolicyLoss
from cwm_core.rl.records import Rollout
from cwm_core.rl.tasks import Reward
from cwm_core.training import TrainConfig, Trainer, World, parallelize
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from ranks import run_ranks

VOCAB = 30
MODEL = preset(
    "tiny",
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=5,
    full_attention_interval=2,
)
VERSION = 7


@st.composite
def rollouts(draw, group=0):
    """The rollouts of a group: turns of any length, ages, rewards and step rewards."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for sample in range(draw(st.integers(1, 4))):
        prompt = int(rng.integers(1, 5))
        parts = [np.zeros(prompt, bool), *(np.full(rng.integers(1, 5), i % 2 == 0) for i in range(rng.integers(1, 4)))]
        actions = np.concatenate(parts)
        n, length = len(actions), int(actions.sum())
        edges = np.sort(rng.integers(0, length + 1, (int(rng.integers(0, 4)), 2)), axis=1)  # may overlap
        spans = [(int(b), int(e), float(rng.normal())) for b, e in edges]
        value = draw(st.sampled_from([-1.0, 1.0, 0.3])) + sum(v for *_, v in spans)
        made.append(
            Rollout(
                "task",
                group,
                sample,
                rng.integers(0, VOCAB, n).astype(np.int32),
                actions,
                np.where(actions, rng.uniform(-6, -0.01, n), np.nan).astype(np.float32),
                np.where(actions, rng.integers(draw(st.sampled_from([0, VERSION])), VERSION + 1, n), -1).astype(
                    np.int32
                ),
                prompt,
                Reward(value, (), value > 0.5, tuple(spans)),
            )
        )
    return made


@st.composite
def algorithms(draw):
    return Algorithm(
        max_length=draw(st.integers(8, 100)),
        baseline=draw(st.sampled_from(["length", "mean"])),
        deviation=draw(st.booleans()),
        normalize=draw(st.sampled_from(["constant", "sequence", "batch"])),
        credit=draw(st.sampled_from(["return", "steps"])),
        step_discount=draw(st.sampled_from([0.0, 0.5, 1.0])),
        observation_weight=draw(st.sampled_from([0.0, 0.05])),
        length_penalty=draw(st.sampled_from([0.0, 0.4])),
    )


LOSSES = st.builds(
    LossConfig,
    clip_low=st.sampled_from([0.0, 0.2, 1.0]),
    clip_high=st.sampled_from([0.0, 0.25, 3.0]),
    truncate=st.sampled_from([0.0, 1.0, 2.5]),
)


def plain_advantage(algorithm, group, rollout, number):
    """Advantage of action `number` of a rollout, from the definition, a term at a time."""

    def shared(one):
        value = one.reward.value - algorithm.length_penalty * one.length / algorithm.max_length
        if algorithm.credit == "steps":
            value -= sum(v for _, _, v in one.reward.token_values)
        return value

    values = [shared(one) for one in group]
    counts = [one.length if algorithm.baseline == "length" else 1 for one in group]
    mean = sum(c * v for c, v in zip(counts, values, strict=True)) / sum(counts)
    advantage = shared(rollout) - mean
    if algorithm.deviation:
        plain_mean = sum(values) / len(values)
        deviation = math.sqrt(sum((v - plain_mean) ** 2 for v in values) / len(values))
        advantage = advantage / deviation if deviation > 1e-12 else 0.0
    if algorithm.credit == "steps":
        steps = [v for one in group for _, _, v in one.reward.token_values]
        own = sorted(rollout.reward.token_values)
        advantage += sum(v - sum(steps) / len(steps) for begin, end, v in own if begin <= number < end)
        later = [v for begin, _, v in own if begin > number]
        for distance, value in enumerate(later, 1):
            advantage += algorithm.step_discount**distance * (value - sum(steps) / len(steps))
    return advantage


def plain_loss(algorithm, config, groups, logprob):
    """The loss of a step from the definition, in float64; `logprob(rollout, i)` is that of its token i."""
    everything = [rollout for group in groups for rollout in group]
    total = 0.0
    for group in groups:
        for rollout in group:
            divisor = {
                "constant": algorithm.max_length * len(everything),
                "sequence": rollout.length * len(everything),
                "batch": sum(one.length for one in everything),
            }[algorithm.normalize]
            observed = [i for i in range(rollout.prompt, len(rollout.tokens)) if not rollout.actions[i]]
            number = -1
            for i in range(rollout.prompt, len(rollout.tokens)):
                log_p = logprob(rollout, i)
                if not rollout.actions[i]:
                    total -= algorithm.observation_weight * log_p / len(observed) / len(everything)
                    continue
                number += 1
                weight = plain_advantage(algorithm, group, rollout, number) / divisor
                ratio = math.exp(log_p - float(rollout.logprobs[i]))
                if config.truncate:
                    total -= weight * min(ratio, config.truncate) * log_p
                else:
                    clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
                    total -= min(weight * ratio, weight * clipped)
    return total


def batch_of(algorithm, groups, seq_len=64):
    everything = [rollout for group in groups for rollout in group]
    advantages = [advantage for group in groups for advantage in algorithm.advantages(group)]
    weights = algorithm.weights(everything, advantages)
    rows, room = [[] for _ in everything], [seq_len] * len(everything)
    for pair in zip(everything, weights, strict=True):
        rows[place(room, len(pair[0].tokens))].append(pair)
    return make_batch(rows, seq_len, VERSION, ["task"])


def loss_of(model, batch, config):
    objective = PolicyLoss(config, torch.device("cpu"))
    found = model.loss(
        batch.tokens,
        batch.targets,
        batch.loss_mask,
        batch.cu_seqlens,
        batch.position_ids,
        objective=objective.of(batch),
    )
    return found, objective


GROUPS = st.tuples(rollouts(0), rollouts(1)).map(list)


@settings(max_examples=40)
@given(GROUPS, algorithms(), LOSSES)
def test_loss_equals_the_formula(groups, algorithm, config):
    model = random_model(MODEL, dtype=torch.float32)
    with torch.no_grad():
        exact = {
            (one.group, one.sample): model(torch.tensor(one.tokens[None].astype(np.int64)))[0].double().log_softmax(-1)
            for group in groups
            for one in group
        }
        found, _ = loss_of(model, batch_of(algorithm, groups), config)

    def logprob(rollout, i):
        return float(exact[rollout.group, rollout.sample][i - 1, int(rollout.tokens[i])])

    expected = plain_loss(algorithm, config, groups, logprob)
    assert float(found.total) == pytest.approx(expected, rel=2e-4, abs=2e-5)


@settings(max_examples=10)
@given(GROUPS, algorithms(), st.sampled_from([LossConfig(), LossConfig(0.0, 0.1), LossConfig(0.5, 3.0)]))
def test_gradient_equals_finite_differences(groups, algorithm, config):
    """In float64, along random directions. The loss is not smooth where a ratio meets its clip, a set of measure 0."""
    torch.set_default_dtype(torch.float64)
    try:
        model = random_model(MODEL, dtype=torch.float64)
    finally:
        torch.set_default_dtype(torch.float32)
    batch = batch_of(algorithm, groups)

    def total():
        # Plain autograd of nothing: the formula on the model's own logits, in float64.
        logits = model(batch.tokens, batch.cu_seqlens, batch.position_ids).log_softmax(-1)
        losses = -logits.gather(-1, batch.targets[..., None])[..., 0].flatten()
        values, _ = PolicyLoss(config, torch.device("cpu")).of(batch)(losses, torch.arange(losses.numel()))
        return float(values[batch.loss_mask.flatten()].sum())

    found, _ = loss_of(model, batch, config)
    found.total.backward()
    generator = torch.Generator().manual_seed(0)
    for parameter in [model.embed_tokens.weight, model.layers[0].mlp.up_proj.weight, model.lm_head.weight]:
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        sides = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * 1e-6)
                sides.append(total())
                parameter.sub_(direction, alpha=sign * 1e-6)
        slope = (sides[0] - sides[1]) / 2e-6
        # The fused loss computes probabilities in float32.
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=2e-5)


@settings(max_examples=30)
@given(st.integers(0, 2**32), LOSSES)
def test_derivative_is_that_of_the_loss(seed, config):
    rng = np.random.default_rng(seed)
    nll = torch.tensor(rng.uniform(0.01, 5, 40))
    behavior = torch.tensor(np.where(rng.random(40) < 0.2, np.nan, rng.uniform(-5, -0.01, 40)))
    batch = make_fields(torch.tensor(rng.normal(size=40)), behavior)
    positions = torch.arange(40)

    def value(losses):
        return PolicyLoss(config, torch.device("cpu")).of(batch)(losses, positions)

    if config.truncate:  # the ratio is a constant of the derivative
        is_action = ~behavior.isnan()
        ratio = torch.where(is_action, (-nll - behavior).exp(), torch.tensor(1.0, dtype=torch.float64))
        expected = batch.weights * ratio.clamp(max=config.truncate)
    else:
        expected = (value(nll + 1e-7)[0] - value(nll - 1e-7)[0]) / 2e-7
    assert torch.allclose(value(nll)[1], expected, atol=1e-6)


def make_fields(weights, behavior, fresh=None):
    from types import SimpleNamespace

    fresh = torch.zeros_like(behavior, dtype=torch.bool) if fresh is None else fresh
    return SimpleNamespace(weights=weights, behavior=behavior, fresh=fresh)


def test_metrics_count_actions_and_compare_fresh_ones():
    loss = PolicyLoss(LossConfig(), torch.device("cpu"))
    weights = torch.tensor([1.0, 1.0, -1.0, -1.0, 5.0])
    behavior = torch.tensor([-1.0, -2.0, -1.0, -1.0, float("nan")])
    fresh = torch.tensor([True, False, True, False, False])
    nll = torch.tensor([1.1, 1.0, 1.5, 0.9, 3.0])
    loss.of(make_fields(weights, behavior, fresh))(nll, torch.arange(5))
    found = loss.metrics(World(torch.device("cpu"), 1, 1, 1))
    differences = np.array([-0.1, 1.0, -0.5, 0.1])
    assert found["loss/actions"] == 4
    assert found["loss/ratio"] == pytest.approx(np.exp(differences).mean())
    assert (found["loss/clipped_low"], found["loss/clipped_high"]) == (0.25, 0.25)
    assert found["engine/compared"] == 2
    assert found["engine/mean_difference"] == pytest.approx(0.3)
    assert found["engine/largest_difference"] == pytest.approx(0.5)
    assert found["engine/kl"] == pytest.approx(np.mean([math.exp(-0.1) - 1 + 0.1, math.exp(-0.5) - 1 + 0.5]))
    assert loss.metrics(World(torch.device("cpu"), 1, 1, 1)) == {"loss/actions": 0}


@settings(max_examples=30)
@given(rollouts())
def test_record_survives_json(group):
    import json

    for rollout in group:
        again = Rollout.from_dict(json.loads(json.dumps(rollout.to_dict())))
        assert again.to_dict() == rollout.to_dict()
        for name in ("tokens", "actions", "logprobs", "versions"):
            ours, theirs = getattr(again, name), getattr(rollout, name)
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs, equal_nan=name == "logprobs")
        assert again.reward == rollout.reward


def test_records_refuse_contradictions():
    arrays = [np.array([1, 2], np.int32), np.array([False, True]), np.array([np.nan, -1], np.float32)]
    reward = Reward(1.0, (), True)
    Rollout("t", 0, 0, *arrays, np.array([-1, 0], np.int32), 1, reward)
    with pytest.raises(ValueError, match="t 0/0: expected a policy version of each action"):
        Rollout("t", 0, 0, *arrays, np.array([-1, -1], np.int32), 1, reward)
    with pytest.raises(ValueError, match="one length"):
        Rollout("t", 0, 0, *arrays, np.array([0], np.int32), 1, reward)
    with pytest.raises(ValueError, match="prompt of 2 tokens"):
        Rollout("t", 0, 0, *arrays, np.array([-1, 0], np.int32), 2, reward)
    with pytest.raises(ValueError, match="not finite"):
        Rollout("t", 0, 0, *arrays[:2], np.full(2, np.nan, np.float32), np.array([-1, 0], np.int32), 1, reward)


def test_equal_rewards_have_no_advantage():
    actions = np.array([False, True, True])
    group = [
        Rollout(
            "t", 0, i, np.zeros(3, np.int32), actions, np.where(actions, -1, np.nan).astype(np.float32),
            np.where(actions, 0, -1).astype(np.int32), 1, Reward(0.1 + 0.2, (), False, ((0, 2, 0.1),)),
        )
        for i in range(3)
    ]  # fmt: skip
    for credit in ("return", "steps"):
        for advantage in Algorithm(10, deviation=True, credit=credit).advantages(group):
            assert not advantage.any()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"baseline": "median"}, "baseline must be one of length, mean"),
        ({"step_discount": 2.0}, "step_discount must be between 0 and 1"),
        ({"length_penalty": -1.0}, "length_penalty must not be negative"),
        ({"max_length": 0}, "max_length must be positive"),
    ],
)
def test_algorithms_refuse_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        Algorithm(**{"max_length": 8, **values})


def test_steps_outside_the_actions_are_refused():
    actions = np.array([False, True])
    arrays = [np.zeros(2, np.int32), actions, np.array([np.nan, -1], np.float32), np.array([-1, 0], np.int32)]
    group = [Rollout("t", 3, i, *arrays, 1, Reward(1, (), True, ((0, i + 1, float(i)),))) for i in range(2)]
    with pytest.raises(ValueError, match="t 3/1: the step reward of actions 0 to 2"):
        Algorithm(8, credit="steps").advantages(group)


# One process and two give the same loss and the same weights.


class Batches:
    """The rows of a fixed step, again and again; a rank has its share of them."""

    sources = ("task",)

    def __init__(self, world):
        rng = np.random.default_rng(0)
        rows = []
        for number in range(4):
            actions = np.array([False] * 3 + [True] * int(rng.integers(3, 20)))
            n = len(actions)
            rollout = Rollout(
                "task", number, 0, rng.integers(0, VOCAB, n).astype(np.int32), actions,
                np.where(actions, rng.uniform(-4, -2, n), np.nan).astype(np.float32),
                np.where(actions, VERSION, -1).astype(np.int32), 3, Reward(1.0, (), True),
            )  # fmt: skip
            rows.append([(rollout, np.where(actions, rng.normal() / 10, 0.0))])
        self.batch = make_batch(rows[world.data_rank :: world.data_ranks], 32, VERSION, ["task"])

    def __iter__(self):
        while True:
            yield self.batch


def several(runs):
    return [train(settings) for settings in runs]


def train(settings):
    config = TrainConfig(max_steps=3, warmup_steps=0, learning_rate=1e-2, **settings)
    world = World.create(config)
    torch.manual_seed(0)
    model = Transformer(MODEL)
    parallelize(model, config, world)
    steps = []
    loss = PolicyLoss(LossConfig(), world.device)
    Trainer(model, Batches(world), config, steps.append, world, objective=loss).run()
    weights = [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]
    return [(step.loss, step.grad_norm, step.metrics) for step in steps], weights


def test_two_ranks_follow_one():
    expected, weights = train({})
    runs = [{}, {"data_parallel_replicas": 2}, {"context_parallel": 2}, {"tensor_parallel": 2}]
    for of_rank in run_ranks(several, 2, runs):
        for (found, others), settings_ in zip(of_rank, runs, strict=True):
            for (loss, norm, metrics), (loss1, norm1, metrics1) in zip(found, expected, strict=True):
                assert loss == pytest.approx(loss1, rel=1e-5), settings_
                assert norm == pytest.approx(norm1, rel=1e-4)
                assert metrics == pytest.approx(metrics1, rel=1e-3, abs=1e-5)
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(others, weights, strict=True))


def test_objective_of_the_identity_is_the_cross_entropy():
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 7, 8), torch.randn(VOCAB, 8)
    targets, mask = torch.randint(VOCAB, (3, 7)), torch.rand(3, 7) < 0.6
    grads = []
    for objective in (None, lambda losses, positions: (losses, torch.ones_like(losses))):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        cross_entropy(h, w, targets, mask, objective=objective).total.backward()
        grads.append((h.grad, w.grad))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
