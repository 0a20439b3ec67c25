"""The chunked loss against PyTorch's over all logits: values, gradients, memory, and over slices of the vocabulary."""

import pytest
import torch
import torch.nn.functional as F
from cwm_core.model import Transformer, cross_entropy, loss, preset
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from ranks import run_ranks
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Chunks of a few rows, so that small examples cross chunk boundaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CPU_CHUNK_LOGITS", 90)
        yield


def plain(hidden, weight, targets, mask):
    """Each position's loss from all logits at once."""
    return F.cross_entropy((hidden @ weight.T).flatten(0, -2), targets.flatten(), reduction="none").view_as(targets) * (
        1 if mask is None else mask
    )


@settings(max_examples=60)
@given(st.integers(0, 50), st.integers(2, 40), st.none() | st.floats(0, 1), st.integers(0, 2**31))
def test_loss_equals_cross_entropy(n, vocab, kept, seed):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(2, n, 6, dtype=torch.float64), torch.randn(vocab, 6, dtype=torch.float64)
    targets, mask = torch.randint(vocab, (2, n)), None if kept is None else torch.rand(2, n) < kept
    results = []
    for ours in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if ours:
            total, tokens = cross_entropy(h, w, targets, mask)
            assert total.dtype == tokens.dtype == torch.float32 and not tokens.requires_grad
        else:
            tokens = plain(h, w, targets, mask)
            total = tokens.sum().float()
        (total * 0.3).backward()
        results.append((total, tokens.detach().float(), h.grad, w.grad))
    for one, expected in zip(*results, strict=True):
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)


def test_positions_outside_the_mask_may_have_any_target():
    hidden, weight = torch.randn(3, 4), torch.randn(5, 4)
    tokens = cross_entropy(hidden, weight, torch.tensor([1, -100, 2]), torch.tensor([True, False, True])).tokens
    assert tokens[1] == 0 and tokens[0] > 0 and tokens[2] > 0


def test_unneeded_gradients_are_not_computed():
    hidden, weight = torch.randn(30, 4), torch.randn(9, 4, requires_grad=True)
    targets = torch.randint(9, (30,))
    with torch.no_grad():
        assert cross_entropy(hidden, weight, targets).total.grad_fn is None
    cross_entropy(hidden, weight, targets).total.backward()
    full = torch.zeros_like(weight).requires_grad_()
    full.data.copy_(weight)
    plain(hidden, full, targets, None).sum().backward()
    torch.testing.assert_close(weight.grad, full.grad, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("kept", [None, 0.5])
def test_no_tensor_holds_all_logits(kept):
    n, vocab, width = 600, 3000, 16  # longer than documents whose scores attention computes as one matrix
    model = Transformer(
        preset(
            "tiny",
            num_hidden_layers=1,
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=8,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )
    tokens = torch.randint(vocab, (1, n))
    with Largest() as largest:
        model.loss(tokens, tokens, None if kept is None else torch.rand(1, n) < kept).total.backward()
    assert largest.numel < n * vocab / 4
    with Largest() as largest:
        plain(model.hidden(tokens), model.lm_head.weight, tokens, None).sum().backward()
    assert largest.numel == n * vocab  # what it would have been


def test_a_gpu_gets_chunks_that_fill_it():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert loss.chunk_rows(128_256, cuda) == loss.chunk_rows(16_032, cuda) == loss.GPU_CHUNK_ROWS
    assert loss.chunk_rows(9, cpu) == 10 and loss.chunk_rows(1000, cpu) == 1


def test_autocast_computes_in_bfloat16():
    hidden, weight = torch.randn(40, 64), torch.randn(30, 64, requires_grad=True)
    targets = torch.randint(30, (40,))
    with torch.autocast("cpu", torch.bfloat16):
        ours = cross_entropy(hidden, weight, targets)
        expected = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")
    torch.testing.assert_close(ours.tokens, expected)
    assert ours.total.dtype == torch.float32
    ours.total.backward()
    assert weight.grad.dtype == torch.float32


# --- slices of the vocabulary ---


def loss_of_slice(hidden, weight, targets, mask, sizes):
    import torch.distributed as dist

    ours = weight.split(sizes)[dist.get_rank()].clone().requires_grad_()
    hidden = hidden.clone().requires_grad_()
    total, tokens = cross_entropy(hidden, ours, targets, mask, dist.group.WORLD)
    (total * 0.3).backward()
    return total.detach(), tokens, hidden.grad, ours.grad


@pytest.mark.parametrize("sizes", [[7, 7], [8, 5], [1, 12]])
def test_slices_of_the_vocabulary_give_the_loss_of_the_whole(sizes):
    torch.manual_seed(0)
    hidden, weight = 3 * torch.randn(2, 20, 6, dtype=torch.float64), torch.randn(sum(sizes), 6, dtype=torch.float64)
    targets, mask = torch.randint(sum(sizes), (2, 20)), torch.rand(2, 20) < 0.8
    h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    total, tokens = cross_entropy(h, w, targets, mask)
    (total * 0.3).backward()
    ranks = run_ranks(loss_of_slice, 2, hidden, weight, targets, mask, sizes)
    for rank in ranks:
        for ours, expected in zip(rank, (total.detach(), tokens, h.grad), strict=False):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([rank[3] for rank in ranks]), w.grad, atol=1e-5, rtol=1e-5)


def loss_with_bad_target():
    import torch.distributed as dist

    return cross_entropy(torch.ones(3, 2), torch.ones(4, 2), torch.tensor([0, 8, -1]), None, dist.group.WORLD).tokens


def test_a_target_that_no_slice_has_is_not_a_number():
    for tokens in run_ranks(loss_with_bad_target, 2):
        assert tokens.isnan().tolist() == [False, True, True]


def sharded_output_layer(config, tokens, placement):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    model = random_model(config)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tensor",))
    placements = [Shard(placement) if placement is not None else Replicate()]
    model.lm_head.weight = torch.nn.Parameter(distribute_tensor(model.lm_head.weight.data, mesh, placements))
    total, each = model.loss(tokens, tokens)
    total.backward()
    grad = model.lm_head.weight.grad
    assert list(grad.placements) == placements
    return total.detach(), each, grad.full_tensor(), model.embed_tokens.weight.grad


@pytest.mark.parametrize("placement", [0, None])
def test_an_output_layer_shared_as_a_dtensor_brings_its_group(placement):
    config = preset(
        "tiny",
        num_hidden_layers=1,
        vocab_size=31,
        hidden_size=16,
        intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
    )  # slices of 16 and 15
    tokens = torch.randint(31, (2, 20))
    model = random_model(config)
    total, each = model.loss(tokens, tokens)
    total.backward()
    expected = total.detach(), each, model.lm_head.weight.grad, model.embed_tokens.weight.grad
    for rank in run_ranks(sharded_output_layer, 2, config, tokens, placement):
        for ours, one in zip(rank, expected, strict=True):
            torch.testing.assert_close(ours, one, atol=1e-5, rtol=1e-5)


def test_an_output_layer_cut_by_columns_is_refused():
    config = preset(
        "tiny",
        num_hidden_layers=1,
        vocab_size=31,
        hidden_size=16,
        intermediate_size=8,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with pytest.raises(AssertionError, match="must be sharded by rows"):
        run_ranks(sharded_output_layer, 2, config, torch.randint(31, (1, 4)), 1)
