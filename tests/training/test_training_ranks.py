"""The trainer on several ranks: the curve of one, checkpoints between numbers of ranks, signals and failures."""

import json
import os
import signal

import cwm_core as cwm
import numpy as np
import pytest
import torch
from cwm_core.data import PackedLoader, ShardWriter
from cwm_core.model import Transformer, initialize, preset
from cwm_core.training import TrainConfig, Trainer, World, latest, parallelize
from ranks import run_ranks

MODEL = preset(
    "tiny",
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    sliding_window=9,
    full_attention_interval=2,
)
STEPS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two sources of documents that count, one by threes and one by sevens, some tokens of which are not learned."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for name, step in (("threes", 3), ("sevens", 7)):
        with ShardWriter(folder / name, MODEL.vocab_size) as writer:
            for length in rng.integers(1, 40, 120):
                ids = (rng.integers(60) + step * np.arange(length)) % 60
                writer.add(ids, rng.random(length) < 0.8)
    return folder


def open_loader(shards, rank=0, ranks=1, **options):
    sources = {name: (str(shards / name), 1.0) for name in ("threes", "sevens")}
    return PackedLoader(sources, 32, batch_size=4, rank=rank, world_size=ranks, **options)


def train(shards, folder="", on_step=None, **settings):
    """Return the metrics of each step, and the weights afterwards."""
    config = TrainConfig(max_steps=STEPS, warmup_steps=2, learning_rate=1e-2, checkpoint_folder=folder, **settings)
    world = World.create(config)
    with torch.device("meta"):
        model = Transformer(MODEL)
    parallelize(model, config, world)
    initialize(model, 0)
    told = []

    def note(progress):
        told.append(progress)
        if on_step:
            on_step(progress, world)

    Trainer(model, open_loader(shards, world.data_rank, world.data_ranks), config, note, world).run()
    weights = {name: getattr(p, "full_tensor", lambda p=p: p)().detach() for name, p in model.named_parameters()}
    return told, weights


def several(shards, runs):
    return [train(shards, **settings) for settings in runs]


def assert_same_course(told, expected):
    assert len(told) == len(expected)
    for ours, theirs in zip(told, expected, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-4)
        assert (ours.step, ours.loss_tokens) == (theirs.step, theirs.loss_tokens)
        assert ours.learning_rate == theirs.learning_rate


TWO = [{}, {"tensor_parallel": 2}, {"context_parallel": 2}, {"grad_accumulation": 2}]


def test_two_ranks_follow_the_curve_of_one(shards):
    shared = ("tensor_parallel", "context_parallel")
    alone = [{key: value for key, value in settings.items() if key not in shared} for settings in TWO]
    expected = [train(shards, **settings)[0] for settings in alone]
    for told in run_ranks(several, 2, shards, TWO):
        for (ours, _), theirs, settings in zip(told, expected, TWO, strict=True):
            assert_same_course(ours, theirs)
            assert [step.tokens for step in ours] == [step.tokens for step in theirs], settings


class Killed(Exception):
    pass


def train_until(shards, folder, last, settings):
    """A run that ends with an exception after an update that no checkpoint has seen."""

    def kill(progress, _):
        if progress.step == last:
            raise Killed

    with pytest.raises(Killed):
        train(shards, folder, kill, checkpoint_every=2, **settings)


def test_a_run_resumes_on_another_number_of_ranks(shards, tmp_path):
    """With the same ranks bit for bit; with others from the same batches, and so equal within rounding."""
    alone, _ = train(shards)
    uninterrupted = run_ranks(train, 2, shards)[0]
    for number, (before, after) in enumerate(((2, 2), (2, 1), (1, 2), (2, 4))):
        folder = str(tmp_path / str(number))
        settings = {"tensor_parallel": 2} if after == 4 else {}
        if before == 1:
            train_until(shards, folder, 5, {})
        else:
            run_ranks(train_until, before, shards, folder, 5, settings)
        assert latest(folder).name == "step-000000004"
        told, weights = run_ranks(train, after, shards, folder)[0] if after > 1 else train(shards, folder)
        assert_same_course(told, alone[4:])
        if before == after:
            assert [step.loss for step in told] == [step.loss for step in uninterrupted[0][4:]]
            assert all(torch.equal(weights[name], uninterrupted[1][name]) for name in weights)


def signalled(shards, folder):
    """Send SIGTERM to only one of the ranks during the third step."""

    def interrupt(progress, world):
        if progress.step == 3 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    return len(train(shards, folder, interrupt)[0])


def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(shards, tmp_path):
    assert run_ranks(signalled, 2, shards, str(tmp_path)) == [3, 3]
    assert latest(tmp_path).name == "step-000000003"


def poisoned(shards, folder, settings):
    """The message of a run whose output layer becomes infinite for one token after three steps."""
    config = TrainConfig(max_steps=STEPS, checkpoint_folder=folder, warmup_steps=0, **settings)
    world = World.create(config)
    model = Transformer(MODEL)
    initialize(model, 0)
    parallelize(model, config, world)

    def poison(progress):
        if progress.step == 3:
            with torch.no_grad():
                model.lm_head.weight.mul_(float("inf"))

    with pytest.raises(FloatingPointError) as error:
        Trainer(model, open_loader(shards, world.data_rank, world.data_ranks), config, poison, world).run()
    return str(error.value)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_is_not_finite_says_which_documents_it_had(shards, tmp_path, ranks):
    for settings in ({}, {"context_parallel": 2})[:ranks]:
        folder = tmp_path / str(settings)
        run = (shards, str(folder), settings)
        messages = run_ranks(poisoned, ranks, *run) if ranks > 1 else [poisoned(*run)]
        expected = open_loader(shards)
        expected.skip(3)
        batch = next(expected)
        names = {
            (expected.sources[source], number)
            for source, number in zip(batch.source_ids.tolist(), batch.document_ids.tolist(), strict=True)
            if source >= 0
        }
        found = []
        for rank, message in enumerate(messages):
            assert message.startswith("step 4: loss is nan") and "documents whose loss is not finite: " in message
            failed = folder / "failed-step-000000004"
            assert str(failed) in message
            report = json.loads((failed / f"report-{rank}.json").read_text())
            assert report["step"] == 4 and "lm_head.weight" in report["non_finite_gradients"]
            found.append({(entry["source"], entry["document"]) for entry in report["documents"]})
            with np.load(failed / f"batches-{rank}.npz") as arrays:
                assert np.isin(arrays["0.tokens"].flatten(), batch.tokens).all()
                assert not np.isfinite(arrays["0.losses"]).all()
        assert set.union(*found) == names
        assert all(own == names for own in found) or not settings
        assert latest(folder) is None
        weights = cwm.model.load(failed / "step-000000003")
        assert not torch.isfinite(weights.lm_head.weight).all() and torch.isfinite(weights.embed_tokens.weight).all()


def unprepared(shards):
    config = TrainConfig(max_steps=1)
    with pytest.raises(ValueError, match="call parallelize\\(model, config, world\\) first: there are 2 ranks"):
        Trainer(Transformer(MODEL), open_loader(shards), config)


def test_a_model_that_was_not_divided_is_refused(shards):
    run_ranks(unprepared, 2, shards)


def replicas_of_own_weights(shards, shape):
    """The documented script, in which each rank draws its own weights; returns those after two steps."""
    torch.manual_seed(100 + torch.distributed.get_rank())
    config = TrainConfig(max_steps=2, warmup_steps=1, **shape)
    world = World.create(config)
    model = Transformer(MODEL)
    parallelize(model, config, world)
    Trainer(model, open_loader(shards, world.data_rank, world.data_ranks), config, None, world).run()
    # As this rank has them: `full_tensor` does not look at the other replicas.
    return {name: parameter.full_tensor().detach().numpy() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    "shape", [{"data_parallel_replicas": 2}, {"data_parallel_replicas": 1}, {"tensor_parallel": 2}]
)
def test_all_ranks_train_the_weights_of_the_first(shards, shape):
    one, other = run_ranks(replicas_of_own_weights, 2, shards, shape)
    torch.manual_seed(100)
    alone = Transformer(MODEL)
    config = TrainConfig(max_steps=2, warmup_steps=1)
    Trainer(alone, open_loader(shards), config).run()
    for name, parameter in alone.named_parameters():
        assert (one[name] == other[name]).all(), name
        np.testing.assert_allclose(one[name], parameter.detach().numpy(), rtol=1e-3, atol=1e-5, err_msg=name)


def weights_made_apart(shards, shape):
    config = TrainConfig(max_steps=1, **shape)
    world = World.create(config)
    with torch.device("meta"):
        model = Transformer(MODEL)
    parallelize(model, config, world)
    initialize(model, 0)
    with torch.no_grad():
        model.norm.weight.mul_(1.0 + torch.distributed.get_rank() / 10)
    loader = open_loader(shards, world.data_rank, world.data_ranks)
    with pytest.raises(ValueError, match=r"copies of 1 weights differ between ranks, the first is norm\.weight"):
        Trainer(model, loader, config, None, world).run()
    return True


def test_replicas_that_differ_are_refused(shards):
    assert run_ranks(weights_made_apart, 2, shards, {"data_parallel_replicas": 2}) == [True, True]
