"""Sums over Gram matrices against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_gamma import metrics


def reference(weight: Tensor) -> tuple[float, float, float]:
    w = weight.double().numpy()
    rows = w[w.any(axis=1)]
    cosines = rows @ rows.T / np.outer(*2 * [np.linalg.norm(rows, axis=1)])
    pairs = cosines[~np.eye(len(rows), dtype=bool)]
    s = np.linalg.svd(w, compute_uv=False)
    return pairs.sum(), (pairs**2).sum(), (s**4).sum() / (s**2).sum() ** 2


@st.composite
def matrices(draw) -> Tensor:
    n, d = draw(st.integers(1, 300)), draw(st.integers(2, 300))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    weight = torch.randn(n, d, generator=generator) * 10.0 ** draw(st.integers(-12, 3))
    if draw(st.booleans()):  # Condensed onto one direction and its opposite.
        direction = torch.randn(d, generator=generator)
        weight = 0.01 * weight + direction * torch.randn(n, 1, generator=generator) * weight.std()
    weight[: draw(st.integers(0, n - 1))] = 0.0
    return weight


@given(matrices())
@settings(max_examples=60, deadline=None)
def test_sums_of_rows_and_of_columns_are_those_of_float64(weight):
    norms = torch.linalg.vector_norm(weight, dim=1)
    n = (norms > 0).sum()
    size = min(4, *weight.shape)
    found = [
        metrics.sums_by_columns(
            metrics.column_grams(weight, norms), n.float(), torch.eye(size, weight.shape[1])
        ),
        metrics.sums_by_rows(weight, norms, torch.eye(size, weight.shape[0])),
    ]
    cosines, squared, concentration = reference(weight)
    product = weight.double() @ weight.double().T
    # What it is compared with: Σ cos² of random rows, and the diagonal that is subtracted.
    scale = max(n.item() ** 2 / weight.shape[1], n.item())
    for sums in found:
        assert sums.cosines.item() == pytest.approx(cosines, rel=1e-4, abs=1e-5 * n.item())
        assert sums.squared_cosines.item() == pytest.approx(squared, rel=2e-6, abs=2e-6 * scale)
        assert sums.concentration.item() == pytest.approx(concentration, rel=5e-6)
    far = (found[1].product.double() - product[:size]).abs().max()
    assert far <= 1e-5 * product.diagonal().max()


def test_parts_of_the_rows_add_up_and_a_part_may_be_empty():
    weight = torch.randn(50, 20)
    norms = weight.norm(dim=1)
    cuts = (slice(0, 30), slice(30, 30), slice(30, 50))
    parts = zip(*(metrics.column_grams(weight[cut], norms[cut]) for cut in cuts), strict=True)
    for whole, part in zip(metrics.column_grams(weight, norms), parts, strict=True):
        assert torch.allclose(whole, sum(part), rtol=1e-5, atol=1e-5)


def test_zero_and_broken_matrices_read_nan_and_not_a_number_that_looks_right():
    for weight in (torch.zeros(5, 8), torch.full((5, 8), torch.inf), torch.full((5, 8), torch.nan)):
        norms = torch.linalg.vector_norm(weight, dim=1)
        assert metrics.sums_by_rows(weight, norms, torch.eye(2, 5)).concentration.isnan()
        of_columns = metrics.sums_by_columns(
            metrics.column_grams(weight, norms), torch.tensor(5.0), torch.eye(2, 8)
        )
        assert of_columns.concentration.isnan()


def test_tf32_in_training_does_not_reach_the_products():
    torch.set_float32_matmul_precision("medium")
    try:
        with metrics.exact_products(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
