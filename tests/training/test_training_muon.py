"""Muon against its definition in float64, and against the optimizer of PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cwm_core.training.muon import COEFFICIENTS, Muon, orthogonalize
from hypothesis import given
from hypothesis import strategies as st
from torch import nn


def polynomial(x):
    """Return what five iterations make of a singular value."""
    a, b, c = COEFFICIENTS
    for _ in range(5):
        x = a * x + b * x**3 + c * x**5
    return x


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), seed=st.integers(0, 2**32), scale=st.floats(-6, 6))
def test_orthogonalize_maps_the_singular_values(rows, columns, seed, scale):
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)) * 10**scale
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    expected = u * polynomial(s / np.sqrt((s**2).sum())) @ v
    result = orthogonalize(torch.from_numpy(matrix).float())
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=2e-4)


def test_orthogonalize_leaves_zeros():
    assert not orthogonalize(torch.zeros(3, 5)).any()


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_steps_equal_those_of_pytorch_but_for_its_rounding(shape):
    torch.manual_seed(1)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = Muon([ours], **settings), torch.optim.Muon([theirs], **settings)
    for _ in range(10):
        gradient = torch.randn(shape)
        for matrix, optimizer in zip((ours, theirs), optimizers, strict=True):
            matrix.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0)  # bfloat16 has 8 bits
    assert (ours - 1).abs().max() > 0.02


def test_matrices_without_gradient_stay():
    matrix = nn.Parameter(torch.ones(2, 2))
    Muon([matrix], lr=1.0).step()
    assert torch.equal(matrix, torch.ones(2, 2))
