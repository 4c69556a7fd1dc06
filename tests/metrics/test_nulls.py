"""Random-matrix nulls against sampled matrices, SciPy and known values."""

import math

import numpy as np
import pytest
import torch
from scipy.special import betainc

from lit_gamma import metrics as m


@pytest.fixture(scope="module")
def samples():
    """Metrics of 400 Gaussian 64×96 matrices: cosine metrics between rows, then soft ranks."""
    weight = torch.randn(400, 64, 96, generator=torch.Generator().manual_seed(0)) * 0.01
    cosines, values = m.cosine_matrix(weight), m.singular_values(weight)
    return {
        "mean": m.mean_cosine(cosines),
        "square": m.mean_squared_cosine(cosines),
        "absolute": m.mean_absolute_cosine(cosines),
        "aligned": m.aligned_fraction(cosines, 0.2),
        "opposed": m.opposed_fraction(cosines, 0.2),
        "effective": m.effective_rank(values),
        "participation": 1 / m.participation_ratio(values),
        "stable": m.stable_rank(values),
    }


@pytest.mark.parametrize(
    ("name", "null", "bias"),
    [
        ("mean", 0.0, 0),
        ("square", m.null_mean_squared_cosine(96), 0),
        ("absolute", m.null_mean_absolute_cosine(96), 0),
        ("aligned", m.null_aligned_fraction(96, 0.2), 0),
        ("opposed", m.null_aligned_fraction(96, 0.2) / 2, 0),
        ("participation", 1 / m.null_participation_ratio(64, 96), 0),
        # limits of large matrices: 0.20 % too large and 0.12 % too small at this size
        ("effective", m.null_effective_rank(64, 96), 0.002),
        ("stable", m.null_stable_rank(64, 96), 0.0012),
    ],
)
def test_sampled_means_agree_within_four_standard_errors(samples, name, null, bias):
    values = samples[name]
    standard_error = values.std().item() / math.sqrt(len(values))
    assert values.mean().item() == pytest.approx(null, abs=4 * standard_error + bias * null)
    assert name == "mean" or standard_error < 0.01 * null  # sharp enough to mean something


@pytest.mark.parametrize(
    ("n", "d", "rank"),
    [(256, 256, 206.1), (768, 768, 618.3), (3072, 768, 742.1), (50257, 768, 766.5)],
)
def test_effective_rank_known_values(n, d, rank):
    assert round(m.null_effective_rank(n, d), 1) == rank
    assert m.null_effective_rank(d, n) == m.null_effective_rank(n, d)


@pytest.mark.parametrize("d", [1, 2, 3, 10, 768, 50257])
@pytest.mark.parametrize("threshold", [0.0, 0.001, 0.1, 0.9, 1.0])
def test_aligned_fraction_is_an_incomplete_beta_function(d, threshold):
    """P(cos² > t²) with cos² ~ Beta(1/2, (d-1)/2); for d = 1 every |cos| is 1."""
    expected = betainc((d - 1) / 2, 0.5, 1 - threshold**2) if d > 1 else float(threshold < 1)
    assert m.null_aligned_fraction(d, threshold) == pytest.approx(expected, rel=1e-6, abs=1e-300)


def test_absolute_cosine_closed_forms():
    """A uniform angle gives 2/π, a uniform cosine 1/2, and a normal one √(2/(πd))."""
    small = [m.null_mean_absolute_cosine(d) for d in (1, 2, 3)]
    assert small == pytest.approx([1, 2 / math.pi, 1 / 2], rel=1e-12)
    large = m.null_mean_absolute_cosine(50257)
    assert large == pytest.approx(math.sqrt(2 / (math.pi * 50257)), rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 768])
def test_one_row_or_column_has_rank_one(size):
    for null in (m.null_effective_rank, m.null_participation_ratio, m.null_stable_rank):
        assert null(1, size) == pytest.approx(1, abs=1e-15)
        assert null(size, 1) == pytest.approx(1, abs=1e-15)


def test_rank_nulls_approach_their_limits():
    n, d = 10**8, 4 * 10**8
    assert m.null_stable_rank(n, d) == pytest.approx(n * d / (n**0.5 + d**0.5) ** 2, rel=1e-4)
    assert m.null_participation_ratio(n, d) == pytest.approx(n * d / (n + d), rel=1e-7)
    assert m.null_effective_rank(n, n) / n == pytest.approx(0.80504, abs=1e-5)


def test_impossible_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        m.null_effective_rank(0, 5)
    with pytest.raises(ValueError, match=r"1\.5"):
        m.null_aligned_fraction(5, 1.5)
    assert np.isfinite([m.null_aligned_fraction(2, 0.9), m.null_effective_rank(1, 1)]).all()


@pytest.mark.parametrize(("k", "d", "e"), [(4, 16, 16), (8, 24, 5), (32, 64, 96), (1, 3, 3)])
def test_ranks_of_random_products_are_those_of_whole_factors(k, d, e):
    generator = torch.Generator().manual_seed(1)
    n = 4096 // k
    a, b = (torch.randn(n, k, width, generator=generator, dtype=torch.float64) for width in (d, e))
    s = torch.linalg.svdvals(a.mT @ b)
    by_grams = m.singular_values_of_product(a @ a.mT, b @ b.mT)
    rank = min(k, d, e)
    torch.testing.assert_close(by_grams[:, :rank], s[:, :rank], rtol=1e-6, atol=1e-6)
    for name, values in m.ranks(s).items():
        error = values.std().item() / math.sqrt(n)  # The null's own is about as large.
        null = m.null_product_ranks(k, d, e)[name]
        assert values.mean().item() == pytest.approx(null, abs=4 * 1.5 * error + 1e-9), name
        assert error < 0.01 * null


def test_products_of_condensed_or_broken_factors():
    a, b = torch.ones(1, 6, 8).double(), torch.randn(1, 6, 8).double()
    s = m.singular_values_of_product(a @ a.mT, b @ b.mT)
    assert m.effective_rank(s).item() == pytest.approx(1, abs=1e-5)
    broken = m.singular_values_of_product(a @ a.mT, torch.full((1, 6, 6), torch.nan).double())
    assert broken.isnan().all()
    assert m.singular_values_of_product(broken[..., None] * s, b @ b.mT).isnan().all()
    with pytest.raises(ValueError, match="sizes must be positive"):
        m.null_product_ranks(0, 3, 3)
