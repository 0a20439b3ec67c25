"""Test checkpoints: contents, failures and damage, and resuming on any number of ranks."""

import os
import pickle
import random
import re
import resource
import shutil
import signal
import threading
import warnings
import zlib
from pathlib import Path

import cwm_core.model
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_dcp
from cwm_core.model import Transformer, preset
from cwm_core.training import Checkpoints, TrainConfig, checkpoint, latest, manifest
from cwm_core.training.optimizer import make_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import assert_same
from ranks import run_ranks
from test_training import train
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module


def tiny_run(seed=0):
    """A model and its optimizers, whose states are random too."""
    torch.manual_seed(seed)
    model = Transformer(
        preset("tiny", vocab_size=10, hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8)
    )
    optimizers = make_optimizers(model, TrainConfig(max_steps=1, optimizer="muon"))
    fill(model, optimizers, seed)
    return model, optimizers


def fill(model, optimizers, seed):
    """Weights and optimizer states that depend on `seed` and their names alone, however they are sharded."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in named(model, optimizers).items():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        value = torch.randn(tensor.shape, generator=generator)
        if isinstance(tensor, DTensor):
            value = distribute_tensor(value, tensor.device_mesh, tensor.placements)
        with torch.no_grad():
            tensor.copy_(value)


def named(model, optimizers):
    parameters = dict(model.named_parameters())
    tensors = dict(parameters)
    for name, parameter in parameters.items():
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{name} {key}"] = value
    return tensors


def values(model, optimizers):
    """Copies of all tensors, whole."""
    tensors = named(model, optimizers).items()
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype and torch.equal(tensor, b[name]), name


def three_saved(folder):
    checkpoints = Checkpoints(folder, keep=3)
    for step in (1, 2, 3):
        checkpoints.save(step, *tiny_run(step), {"loader": {"index": 10 * step}})
    checkpoints.wait()
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of the steps 1, 2 and 3, each of the run of that seed; to be copied."""
    return three_saved(tmp_path_factory.mktemp("saved"))


def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def resumed(folder):
    """Return step and tensors of the resumed state, and the texts of warnings."""
    run = tiny_run(99)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = Checkpoints(folder).resume(*run)
    return state["step"], values(*run), [str(warning.message) for warning in caught]


def rewrite_manifest(path):
    """Rewrite the manifest with valid checksums, as an attacker would."""
    manifest.write(path, checkpoint.FORMAT, manifest.entries(p for p in path.iterdir() if p.name != manifest.FILE))


def test_a_saved_state_is_resumed(saved, tmp_path):
    folder = copied(saved, tmp_path)
    assert latest(folder) == folder / "step-000000003"
    run = tiny_run(99)
    assert Checkpoints(folder).resume(*run) == {"step": 3, "loader": {"index": 30}}
    assert_equal(values(*run), values(*tiny_run(3)))


def test_without_checkpoints_nothing_changes(tmp_path):
    run = tiny_run(5)
    assert Checkpoints(tmp_path / "new").resume(*run) is None
    assert_equal(values(*run), values(*tiny_run(5)))
    assert latest(tmp_path / "nowhere") is None


def test_a_checkpoint_is_a_model_to_load(saved):
    assert_same(cwm_core.model.load(saved / "step-000000002"), tiny_run(2)[0])


def test_pytorch_reads_the_tensors(saved, tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(saved / "step-000000003", tmp_path / "all.pt")
    stored, (model, optimizers) = torch.load(tmp_path / "all.pt", weights_only=True), tiny_run(3)
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[f"model.{name}"], tensor)
    assert len(stored) == len(named(model, optimizers))


def test_random_generators_are_restored(tmp_path):
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves one for the next call
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, *tiny_run(), {})
    expected = draw()
    checkpoints.resume(*tiny_run(1))
    assert draw() == expected


@pytest.mark.parametrize("asynchronous", [True, False])
def test_saved_is_the_state_at_that_moment(tmp_path, monkeypatch, asynchronous):
    """Twice, as the second save writes to the memory of the first."""
    go_on = threading.Event()
    write = checkpoint._write_tensors

    def late(*args):
        assert go_on.wait(30)
        write(*args)

    monkeypatch.setattr(checkpoint, "_write_tensors", late)
    checkpoints = Checkpoints(tmp_path, asynchronous=asynchronous)
    model, optimizers = tiny_run()
    for step in (1, 2):
        if not asynchronous:
            go_on.set()
        fill(model, optimizers, step)
        checkpoints.save(step, model, optimizers, {})
        fill(model, optimizers, 77)
        assert go_on.is_set() or not (tmp_path / f"step-{step:09d}").exists()
        go_on.set()
        checkpoints.wait()
        go_on.clear()
        assert_equal(resumed(tmp_path)[1], values(*tiny_run(step)))


def test_one_save_at_a_time(tmp_path, monkeypatch):
    running, most, write = [], [], checkpoint._write_tensors

    def counted(*args):
        running.append(1)
        most.append(len(running))
        write(*args)
        running.pop()

    monkeypatch.setattr(checkpoint, "_write_tensors", counted)
    three_saved(tmp_path)
    assert most == [1, 1, 1]


def test_a_failure_is_raised_once_and_the_next_save_is_whole(tmp_path, monkeypatch):
    checkpoints, run = Checkpoints(tmp_path), tiny_run()
    checkpoints.save(1, *run, {})
    checkpoints.wait()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_tensors", fail)
        checkpoints.save(2, *run, {})
        with pytest.raises(OSError, match=r"step-000000002 could not be written: .*No space left"):
            checkpoints.save(3, *run, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    checkpoints.save(4, *run, {})
    checkpoints.wait()
    assert latest(tmp_path).name == "step-000000004"


def test_full_disk(tmp_path):
    """Limit the size of files to this many bytes."""
    checkpoints, run = Checkpoints(tmp_path), tiny_run()
    checkpoints.save(1, *run, {})
    checkpoints.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        checkpoints.save(2, *run, {})
        with pytest.raises(OSError, match="step-000000002 could not be written"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    checkpoints = Checkpoints(tmp_path / "file" / "run")
    with pytest.raises(OSError, match="file/run"):
        checkpoints.resume(*tiny_run())
    checkpoints.save(1, *tiny_run(), {})
    with pytest.raises(OSError, match="file/run"):
        checkpoints.wait()


def test_old_checkpoints_are_deleted(tmp_path):
    checkpoints, run = Checkpoints(tmp_path, keep=2), tiny_run()
    for step in (8, 9, 10, 11):
        checkpoints.save(step, *run, {})
    checkpoints.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000011"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for seed in (1, 2):
        checkpoints.save(5, *tiny_run(seed), {})
    checkpoints.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    assert_equal(resumed(tmp_path)[1], values(*tiny_run(2)))


@pytest.mark.parametrize("state", [{"a": torch.ones(1)}, {"a": [{3: "x"}]}, {"a": np.int64(3)}, {"a": b"x"}])
def test_state_that_json_would_change_is_refused(tmp_path, state):
    with pytest.raises(TypeError, match="must be valid JSON"):
        Checkpoints(tmp_path).save(1, *tiny_run(), state)


def test_refused_state_changes_nothing(saved, tmp_path):
    def refuse(state):
        raise ValueError(f"not from step {state['step']}")

    run, folder = tiny_run(99), copied(saved, tmp_path)
    with pytest.raises(ValueError, match="not from step 3"):
        Checkpoints(folder).resume(*run, refuse)
    assert_equal(values(*run), values(*tiny_run(99)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 24}, "not"),
        ({"num_hidden_layers": 2}, "lacks model.layers.1"),
        ({"vocab_size": 11}, r"as \[10, 16\]"),
    ],
)
def test_checkpoint_of_another_model_is_refused(saved, tmp_path, change, message):
    shape = {"vocab_size": 10, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8}
    model = Transformer(preset("tiny", **shape | change))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = make_optimizers(model, TrainConfig(max_steps=1, optimizer="muon"))
    with pytest.raises(ValueError, match=rf"step-000000003.*{message}"):
        Checkpoints(copied(saved, tmp_path)).resume(model, optimizers)
    assert_equal(before, model.state_dict())


# Damage.


FILES = [".metadata", "__0_0.distcp", "config.json", "manifest.json", "rng-00000.pt", "state.json"]


def test_files_are_those_that_are_damaged_here(saved):
    assert sorted(path.name for path in (saved / "step-000000003").iterdir()) == FILES


@pytest.fixture(scope="module")
def run_and_step_2():
    return tiny_run(99), values(*tiny_run(2))


@settings(max_examples=40)
@given(name=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), bit=st.sampled_from([None, *range(8)]))
def test_damage_is_found_and_the_checkpoint_before_taken(saved, run_and_step_2, tmp_path_factory, name, place, bit):
    """A flipped bit, or the file cut off: in any file, anywhere."""
    run, expected = run_and_step_2
    for tensor in named(*run).values():
        tensor.detach().zero_()
    folder = tmp_path_factory.mktemp("damage")
    for step in (2, 3):
        shutil.copytree(saved / f"step-{step:09d}", folder / f"step-{step:09d}")
    file = folder / "step-000000003" / name
    data = bytearray(file.read_bytes())
    at = int(place * len(data))
    if bit is None:
        del data[at:]
    else:
        data[at] ^= 1 << bit
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=f"skipping checkpoint {re.escape(str(file.parent))}:"):
        assert Checkpoints(folder).resume(*run)["step"] == 2
    assert_equal(values(*run), expected)
    assert sorted(path.name for path in folder.iterdir())[-1] == "step-000000003.skipped"
    shutil.rmtree(folder)


def test_each_reason_is_reported(saved, tmp_path):
    folder = copied(saved, tmp_path)
    (folder / "step-000000003" / "__0_0.distcp").unlink()
    text = (folder / "step-000000002" / manifest.FILE).read_text()
    (folder / "step-000000002" / manifest.FILE).write_text(text.replace('"format": 2', '"format": 3'))
    step, _, warned = resumed(folder)
    assert step == 1
    assert "No such file" in warned[0] and "__0_0.distcp" in warned[0]
    assert "the format is 3, expected 2" in warned[1]


def test_all_damaged_is_an_error_every_time(saved, tmp_path):
    folder = copied(saved, tmp_path)
    for path in folder.iterdir():
        (path / "state.json").write_text("{")
    for _ in range(2):
        run = tiny_run(99)
        with (
            pytest.warns(UserWarning, match="skipping checkpoint"),
            pytest.raises(ValueError, match="no usable checkpoint"),
        ):
            Checkpoints(folder).resume(*run)
        assert_equal(values(*run), values(*tiny_run(99)))


def test_new_checkpoints_outlive_damaged_ones_of_later_steps(saved, tmp_path):
    folder = copied(saved, tmp_path)
    for step in (2, 3):
        (folder / f"step-{step:09d}" / "state.json").unlink()
    checkpoints, run = Checkpoints(folder, keep=1), tiny_run()
    with pytest.warns(UserWarning):
        assert checkpoints.resume(*run)["step"] == 1
    checkpoints.save(2, *run, {})
    checkpoints.wait()
    assert latest(folder).name == "step-000000002"


class Evil:
    def __init__(self, made):
        self.made = made

    def __reduce__(self):
        return os.mkdir, (str(self.made),)


def test_metadata_that_is_code_is_not_run(saved, tmp_path):
    folder = copied(saved, tmp_path)
    path = folder / "step-000000003"
    (path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    rewrite_manifest(path)
    step, _, warned = resumed(folder)
    assert step == 2 and ".metadata is not usable" in warned[0]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("hide", [True, False])
def test_entries_that_are_code_are_not_run(saved, tmp_path, hide):
    """One beside the tensors, and one in the place of a tensor."""
    folder = copied(saved, tmp_path)
    path = folder / "step-000000003"
    state = {f"model.{name}": tensor for name, tensor in tiny_run(3)[0].state_dict().items()}
    state["model.norm.weight" if hide else "more"] = Evil(tmp_path / "made")
    with warnings.catch_warnings(action="ignore"):
        torch_dcp.save(state, checkpoint_id=path, no_dist=True)
    rewrite_manifest(path)
    step, _, warned = resumed(folder)
    assert step == 2 and "is not a tensor" in warned[0]
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["rng-00000.pt", "__0_0.distcp"])
def test_other_files_that_are_code_are_not_run(saved, tmp_path, name):
    folder = copied(saved, tmp_path)
    path = folder / "step-000000003"
    torch.save(Evil(tmp_path / "made"), path / name)
    metadata = torch_dcp.FileSystemReader(path).read_metadata()
    for info in metadata.storage_data.values():
        info.offset, info.length = 0, (path / info.relative_path).stat().st_size
    if name != "rng-00000.pt":
        (path / ".metadata").write_bytes(pickle.dumps(metadata))
    rewrite_manifest(path)
    with pytest.raises(ValueError, match=r"step-000000003.*[Ww]eights.only"):
        Checkpoints(folder).resume(*tiny_run(99))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("place", ["../step-000000002/__0_0.distcp", "/etc/passwd", "other.distcp"])
def test_only_files_of_the_checkpoint_are_read(saved, tmp_path, place):
    folder = copied(saved, tmp_path)
    path = folder / "step-000000003"
    metadata = torch_dcp.FileSystemReader(path).read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = place
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    rewrite_manifest(path)
    assert "which is not a file of the checkpoint" in resumed(folder)[2][0]


# Kills.


RUN = {"max_steps": 6, "warmup_steps": 2, "optimizer": "muon", "checkpoint_every": 1}


def trained(folder):
    model, losses, _ = train(TrainConfig(**RUN, checkpoint_folder=str(folder)))
    return losses, model.state_dict()


def trained_until_killed(folder, moment):
    """The process is killed while it writes the checkpoint of step 4, at a moment of it."""

    def killing_after(function, when=lambda path, *_: "step-000000004" in str(path)):
        def wrapped(*args, **options):
            function(*args, **options)
            if when(*args):
                os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    if moment == "folder made":
        checkpoint._make_empty = killing_after(checkpoint._make_empty)
    elif moment == "tensors written":
        checkpoint._write_tensors = killing_after(checkpoint._write_tensors)
    elif moment == "manifest written":
        manifest.write = killing_after(manifest.write)
    elif moment == "renamed":
        Path.rename = killing_after(Path.rename, lambda _, to: to.name == "step-000000004")
    elif moment == "old one half deleted":

        def half(path, *_, **__):
            if "step-000000002.old" in str(path):
                next(iter(path.iterdir())).unlink()
                os.kill(os.getpid(), signal.SIGKILL)

        shutil.rmtree = half
    trained(folder)


MOMENTS = ["folder made", "tensors written", "manifest written", "renamed", "old one half deleted"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_saving(tmp_path, moment):
    with pytest.raises(AssertionError, match="exit code -9"):
        run_ranks(trained_until_killed, 1, tmp_path / "killed", moment)
    last = 3 if MOMENTS.index(moment) < 3 else 4
    assert latest(tmp_path / "killed").name == f"step-{last:09d}"
    assert any(path.name.endswith(".partial") for path in (tmp_path / "killed").iterdir()) == (moment != "renamed")
    ((rest, weights),) = run_ranks(trained, 1, tmp_path / "killed")
    ((losses, whole),) = run_ranks(trained, 1, tmp_path / "whole")
    assert rest == losses[last:]
    assert_equal(weights, whole)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["step-000000005", "step-000000006"]


# Several ranks.


def laid_out(layout, seed):
    """The run of `seed`, its parameters laid out over the ranks."""
    torch.manual_seed(seed)
    model = Transformer(
        preset("tiny", vocab_size=10, hidden_size=16, intermediate_size=24, num_hidden_layers=1, head_dim=8)
    )
    if layout in ("tp", "fsdp and tp"):
        shape = (dist.get_world_size(),) if layout == "tp" else (2, 2)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "model")[-len(shape) :])
        plan = {}
        for name, module in model.layers[0].named_modules():
            if isinstance(module, torch.nn.Linear):
                plan[name] = RowwiseParallel() if name.endswith(("o_proj", "down_proj")) else ColwiseParallel()
        assert len(plan) == 7
        parallelize_module(model.layers[0], mesh["model"], plan)
        if layout == "fsdp and tp":
            fully_shard(model, mesh=mesh["data"])
        else:  # a fused optimizer does not take DTensors and others together
            for name, parameter in list(model.named_parameters()):
                if not isinstance(parameter, DTensor):
                    module, _, key = name.rpartition(".")
                    whole = torch.nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()]))
                    setattr(model.get_submodule(module), key, whole)
    elif layout == "fsdp":
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizers = make_optimizers(model, TrainConfig(max_steps=1))
    fill(model, optimizers, seed)
    return model, optimizers


def save_laid_out(folder, layout):
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        run = laid_out(layout, step)
        checkpoints.save(step, *run, {"by": layout})
        fill(*run, 77)
    checkpoints.wait()


def resume_laid_out(folder, layout):
    run = laid_out(layout, 99)
    state = Checkpoints(folder).resume(*run)
    kinds = {type(tensor).__name__ for tensor in named(*run).values()}
    return state, values(*run), sorted(kinds), [*torch.rand(2).tolist(), random.random(), np.random.rand()]


LAYOUTS = [
    (("fsdp", 2), ("plain", 1)),
    (("plain", 1), ("fsdp", 2)),
    (("fsdp", 3), ("tp", 2)),
    (("tp", 2), ("fsdp", 3)),
    (("fsdp and tp", 4), ("plain", 2)),
    (("plain", 2), ("fsdp and tp", 4)),
]


@pytest.mark.parametrize(("before", "after"), LAYOUTS, ids=str)
def test_saved_by_some_ranks_and_resumed_by_others(tmp_path, before, after):
    run_ranks(save_laid_out, before[1], tmp_path, before[0])
    torch.manual_seed(2)
    expected = values(*laid_out("plain", 2))
    generators = []
    for state, tensors, kinds, drawn in run_ranks(resume_laid_out, after[1], tmp_path, after[0]):
        assert state == {"step": 2, "by": before[0]}
        assert_equal(tensors, expected)
        assert ("DTensor" in kinds) == (after[0] != "plain")
        generators.append(drawn)
    # Ranks that there were none of before have numbers of their own, the same ones every time.
    assert len({tuple(drawn) for drawn in generators[before[1] :]}) == max(0, after[1] - before[1])
    again = run_ranks(resume_laid_out, after[1], tmp_path, after[0])
    assert [drawn for *_, drawn in again] == generators
    model = cwm_core.model.load(tmp_path / "step-000000002")
    assert_equal(
        {name: p.detach() for name, p in model.named_parameters()}, {n: expected[n] for n in expected if " " not in n}
    )


def resume_and_warn(folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = resume_laid_out(folder, "fsdp")[0]
    return state["step"], [str(w.message) for w in caught if "skipping checkpoint" in str(w.message)]


@pytest.mark.parametrize("name", ["__0_0.distcp", "__1_0.distcp", "rng-00001.pt"])
def test_ranks_agree_on_what_is_damaged(tmp_path, name):
    """Whichever of them has read the damaged file."""
    run_ranks(save_laid_out, 2, tmp_path, "fsdp")
    file = tmp_path / "step-000000002" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert [(step, len(warned)) for step, warned in run_ranks(resume_and_warn, 2, tmp_path)] == [(1, 1), (1, 0)]


def fail_on_rank_1(folder):
    run, checkpoints, write = laid_out("fsdp", 1), Checkpoints(folder), checkpoint._write_own

    def failing(*args):
        if dist.get_rank() == 1:
            raise OSError(28, "No space left on device")
        return write(*args)

    checkpoints.save(1, *run, {})
    checkpoints.wait()
    checkpoint._write_own = failing
    checkpoints.save(2, *run, {})
    with pytest.raises(OSError, match=r"step-000000002 could not be written: .*No space left"):
        checkpoints.wait()
    checkpoint._write_own = write
    checkpoints.save(3, *run, {})
    checkpoints.wait()
    return sorted(path.name for path in folder.iterdir())


def test_a_failure_on_one_rank_fails_on_all(tmp_path):
    assert run_ranks(fail_on_rank_1, 2, tmp_path) == [["step-000000001", "step-000000003"]] * 2


def failing_once(monkeypatch, number):
    """The `number`-th time tensors are written, the disk is full."""
    write, calls = checkpoint._write_tensors, []

    def written(*args):
        calls.append(args)
        if len(calls) == number:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoint, "_write_tensors", written)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_after_a_failed_one_is_written(tmp_path, monkeypatch, asynchronous):
    failing_once(monkeypatch, 1)
    checkpoints, run = Checkpoints(tmp_path, asynchronous=asynchronous), tiny_run()
    if asynchronous:
        checkpoints.save(1, *run, {"n": 1})
    with pytest.raises(OSError, match="step-000000001 could not be written"):
        checkpoints.save(2 if asynchronous else 1, *run, {"n": 2})
    if asynchronous:
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
    checkpoints.save(3, *run, {"n": 3})
    checkpoints.wait()
    assert latest(tmp_path).name == "step-000000003"
    assert Checkpoints(tmp_path).resume(*tiny_run(1))["n"] == 3


def test_when_two_saves_fail_both_are_named(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write_tensors", fail)
    checkpoints, run = Checkpoints(tmp_path), tiny_run()
    checkpoints.save(1, *run, {})
    with pytest.raises(OSError, match="step-000000001 could not be written") as caught:
        checkpoints.save(2, *run, {})
    assert "step-000000002 could not be written" in "".join(caught.value.__notes__)
    checkpoints.wait()


@pytest.mark.parametrize(("steps", "number", "saved"), [(6, 1, 4), (6, 2, 6), (3, 1, 3)])
def test_a_run_with_a_failed_checkpoint_saves_the_next_state(tmp_path, monkeypatch, steps, number, saved):
    """The next time, or at the end of the run; then it reports the failure."""
    failing_once(monkeypatch, number)
    config = TrainConfig(max_steps=steps, checkpoint_every=2, checkpoint_folder=str(tmp_path))
    with pytest.raises(OSError, match=f"step-{2 * number:09d} could not be written"):
        train(config)
    assert latest(tmp_path).name == f"step-{saved:09d}"
    assert len(train(config)[1]) == steps - saved


def test_a_second_run_in_the_same_folder_is_locked_out(tmp_path):
    config = TrainConfig(max_steps=3, checkpoint_folder=str(tmp_path))
    outcomes = []

    def second(progress):
        with pytest.raises(BlockingIOError, match="another training run") as caught:
            train(config)
        outcomes.append(caught.value.filename)

    assert train(config, on_step=second)[2] == "finished"
    assert outcomes == [str(tmp_path)] * 3
    assert train(config)[2] == "finished"


def test_checkpoints_do_not_follow_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = Checkpoints("run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    checkpoints.save(1, *tiny_run(), {})
    checkpoints.wait()
    assert latest(tmp_path / "run").name == "step-000000001"
