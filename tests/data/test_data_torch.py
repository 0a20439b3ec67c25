"""The packed loader with PyTorch's own loaders."""

import cwm_core as cwm
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.set_vital. is deprecated"),
]


@pytest.fixture
def loader(tmp_path):
    with cwm.ShardWriter(tmp_path, 10_000) as writer:
        for i in range(1, 5001, 50):
            writer.add(np.arange(i, i + 50), source="a")
    return cwm.PackedLoader(tmp_path, 64, batch_size=2, epochs=1)


def rows(batches):
    return [batch.tokens.tolist() for batch in batches]


def twin(loader):
    other = cwm.PackedLoader(**loader._options)
    other.load_state_dict(loader.state_dict())
    return other


def test_arrays_and_tensors_share_memory(loader):
    batch = next(loader)
    tensors = batch.to_torch()
    assert tensors.tokens.data_ptr() == batch.tokens.ctypes.data
    assert tensors.tokens.dtype == tensors.cu_seqlens.dtype == torch.int32
    assert tensors.document_ids.dtype == torch.int64
    assert tensors.loss_mask.dtype == torch.bool
    assert tensors.max_seqlen == 50 and tensors.global_window is None
    assert not batch.tokens.flags.owndata and batch.tokens.flags.c_contiguous


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_data_loader_gives_the_batches_in_order(loader, workers, before):
    for _ in range(before):
        next(loader)
    expected = rows(twin(loader))
    batches = torch.utils.data.DataLoader(loader.dataset(), batch_size=None, num_workers=workers)
    got = list(batches)
    assert rows(got) == expected
    assert all(isinstance(batch.targets, torch.Tensor) for batch in got)


def test_a_data_loader_that_spawns(loader):
    expected = rows(twin(loader))
    batches = torch.utils.data.DataLoader(
        loader.dataset(), batch_size=None, num_workers=2, multiprocessing_context="spawn"
    )
    assert rows(batches) == expected


@pytest.mark.parametrize("workers", [0, 2, 3])
@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_stateful_data_loader_resumes(loader, workers, stop):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    next(loader)
    expected = rows(twin(loader))

    def make():
        return stateful(twin(loader).dataset(), batch_size=None, num_workers=workers)

    batches = make()
    iterator = iter(batches)
    got = rows(next(iterator) for _ in range(stop))
    state = batches.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert got + rows(resumed) == expected


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}, {"multiprocessing_context": "spawn"}])
def test_workers_do_not_repeat_batches(loader, options):
    """A loop that stops early cannot continue, because workers do not move the loader. The error says so."""
    batches = torch.utils.data.DataLoader(loader.dataset(), batch_size=None, num_workers=2, **options)
    next(iter(batches))
    with pytest.raises(RuntimeError, match=r"already served the batches.*StatefulDataLoader"):
        list(batches)


def test_a_single_worker_and_a_second_loader_do_not_repeat_batches(loader):
    dataset = loader.dataset()
    list(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))
    for again in (dataset, loader.dataset()):
        with pytest.raises(RuntimeError, match="already served the batches"):
            list(torch.utils.data.DataLoader(again, batch_size=None, num_workers=3))


def test_a_loader_whose_batches_workers_took_has_no_state(loader):
    before = loader.state_dict()
    expected = rows(twin(loader))
    batches = torch.utils.data.DataLoader(loader.dataset(), batch_size=None, num_workers=2)
    assert rows(batches) == expected
    with pytest.raises(RuntimeError, match="does not know the position of the run"):
        loader.state_dict()
    loader.load_state_dict(before)
    assert loader.state_dict() == before
    assert rows(batches) == expected
    loader.skip(3)
    assert rows(batches) == expected[3:]


def test_without_workers_a_second_loop_continues(loader):
    expected = rows(twin(loader))
    batches = torch.utils.data.DataLoader(loader.dataset(), batch_size=None)
    got = [next(iter(batches)) for _ in range(3)]
    assert rows(got) == expected[:3]
    assert loader.state_dict()["steps"] == 3
