"""Weight metrics against float64 NumPy loops, closed forms and the properties they must have."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_gamma import metrics as m

COSINE_METRICS = [
    m.mean_cosine,
    m.mean_squared_cosine,
    m.mean_absolute_cosine,
    m.aligned_fraction,
    m.opposed_fraction,
]
RANKS = [m.stable_rank, m.participation_ratio, m.effective_rank]
NORMS = [m.frobenius_norm, m.rms, m.max_row_norm, m.spectral_norm, m.implied_gamma]
WEIGHT_METRICS = [
    *[lambda w, f=f: f(m.cosine_matrix(w)) for f in COSINE_METRICS],
    *[lambda w, f=f: f(m.singular_values(w)) for f in RANKS],
    *NORMS,
]
SHAPES = [(1, 7), (7, 1), (1, 1), (2, 3), (12, 12), (40, 9), (9, 40)]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def orthonormal(n, seed=0):
    return torch.linalg.qr(randn(n, n, seed=seed, dtype=torch.float64))[0]


def pair_cosines(weight):
    rows = [row for row in weight.double().numpy() if np.any(row)]
    return np.array(
        [
            a @ b / np.sqrt((a @ a) * (b @ b))
            for i, a in enumerate(rows)
            for j, b in enumerate(rows)
            if i != j
        ]
    )


def reference(weight):
    """The metrics of one matrix in the order of WEIGHT_METRICS, from loops and an SVD."""
    cos = pair_cosines(weight)
    s = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    p = s[s > 0] / s.sum()
    rms = math.sqrt(np.mean(weight.double().numpy() ** 2))
    d_in = weight.shape[1]
    pairs = [cos, cos**2, abs(cos), abs(cos) > 0.9, cos < -0.9]
    return [
        *[np.mean(values) if len(cos) else math.nan for values in pairs],
        (s**2).sum() / s[0] ** 2,
        (s**2).sum() ** 2 / (s**4).sum(),
        math.exp(-(p * np.log(p)).sum()),
        math.sqrt((s**2).sum()),
        rms,
        max(math.sqrt(row @ row) for row in weight.double().numpy()),
        s[0],
        -math.log(rms) / math.log(d_in) if d_in > 1 else math.nan,
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_agrees_with_numpy_float64(shape, dtype):
    weight = (0.02 * randn(*shape)).to(dtype)
    if shape[0] > 5:
        weight[2] = 0
        weight[4] = -3 * weight[0]  # |cos| = 1: gives the fractions something to count
        weight[5] = 2 * weight[0]
    measured = [metric(weight) for metric in WEIGHT_METRICS]
    expected_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for value in measured} == {expected_dtype}
    np.testing.assert_allclose(measured, reference(weight), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_directions_and_ranks_survive_extreme_scales(scale):
    weight = randn(10, 24)
    cosines = m.cosine_matrix(weight * scale)
    torch.testing.assert_close(cosines, m.cosine_matrix(weight))
    values = m.singular_values(weight * scale)
    torch.testing.assert_close(values / scale, m.singular_values(weight))
    for rank in RANKS:
        torch.testing.assert_close(rank(values), rank(m.singular_values(weight)))
    one_tiny_row = weight * torch.tensor([1.0] * 9 + [1e-38]).unsqueeze(1)
    torch.testing.assert_close(m.cosine_matrix(one_tiny_row), m.cosine_matrix(weight))


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6), st.floats(1e-6, 1e6))
@settings(max_examples=40)
def test_invariances_and_bounds(n, d, seed, scale):
    weight = randn(n, d, seed=seed, dtype=torch.float64)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    changed = scale * weight[order] @ orthonormal(d, seed)
    cosines, values = m.cosine_matrix(weight), m.singular_values(weight)
    torch.testing.assert_close(m.cosine_matrix(changed), cosines[order][:, order])
    torch.testing.assert_close(m.singular_values(changed) / scale, values, atol=1e-7, rtol=1e-7)
    row_scales = torch.rand(n, 1, generator=torch.Generator().manual_seed(seed)) + 0.1
    torch.testing.assert_close(m.cosine_matrix(weight * row_scales), cosines)

    stable, participation, effective = (rank(values).item() for rank in RANKS)
    bounds = [1.0, stable, participation, effective, min(n, d)]
    assert all(low <= high + 1e-9 for low, high in itertools.pairwise(bounds))
    if n > 1:
        mean, square, absolute = (metric(cosines).item() for metric in COSINE_METRICS[:3])
        assert abs(mean) <= absolute + 1e-12
        assert absolute**2 - 1e-12 <= square <= absolute + 1e-12
        assert mean >= -1 / (n - 1) - 1e-12  # the Gram matrix is positive semi-definite


def test_batched_and_strided_equal_one_by_one():
    batch = randn(2, 3, 6, 5)
    batch[0, 1, 2] = 0
    batch[1, 2] = 0
    for metric in [*WEIGHT_METRICS, m.cosine_matrix, m.singular_values]:
        looped = torch.stack([metric(weight) for weight in batch.flatten(0, 1)])
        looped = looped.unflatten(0, (2, 3))
        torch.testing.assert_close(metric(batch), looped, equal_nan=True)
        strided = batch.mT.contiguous().mT
        torch.testing.assert_close(metric(strided), looped, equal_nan=True)


@pytest.mark.parametrize(
    ("weight", "cosine", "square", "aligned", "opposed", "rank"),
    [
        (torch.eye(6), 0, 0, 0, 0, 6),
        (orthonormal(6), 0, 0, 0, 0, 6),
        (torch.outer(torch.arange(1.0, 7), randn(9)), 1, 1, 1, 0, 1),
        # ±v in equal parts: the signs cancel in the mean, 3·3·2 of the 6·5 pairs are opposed
        (torch.outer(torch.tensor([1.0, -1] * 3), randn(9)), -0.2, 1, 1, 0.6, 1),
        # two orthogonal groups of 3: 2·3·2 of the 30 pairs are aligned
        (torch.eye(2).repeat_interleave(3, 0), 0.4, 0.4, 0.4, 0, 2),
    ],
)
def test_closed_forms(weight, cosine, square, aligned, opposed, rank):
    measured = [metric(m.cosine_matrix(weight)).item() for metric in COSINE_METRICS]
    assert measured == pytest.approx([cosine, square, square, aligned, opposed], abs=1e-6)
    assert [f(m.singular_values(weight)).item() for f in RANKS] == pytest.approx(
        [rank] * 3, abs=1e-5
    )


def test_opposed_groups_cancel_in_the_mean_only():
    cosines = m.cosine_matrix(torch.outer(torch.tensor([1.0, -1] * 200), randn(50)))
    assert abs(m.mean_cosine(cosines)) < 0.003
    assert m.mean_squared_cosine(cosines).item() == pytest.approx(1, abs=1e-5)


def test_pairs_of_fewer_than_two_neurons_read_nan_whatever_the_rounding():
    rounded = torch.tensor([1e-7, -1e-7, 0.0, 0.5])
    means = m.mean_of_pairs(rounded, torch.tensor([1.0, 1.0, 0.0, 2.0]))
    assert means.isnan().tolist() == [True, True, True, False]
    assert means[3] == 0.25


def test_zero_rows_count_neither_as_neurons_nor_as_directions():
    weight = randn(6, 4)
    weight[[1, 4]] = 0
    cosines = m.cosine_matrix(weight)
    assert cosines.diagonal().tolist() == [1, 0, 1, 1, 0, 1]
    assert not cosines[[1, 4]].any()
    assert not cosines[:, [1, 4]].any()
    without = m.cosine_matrix(weight[[0, 2, 3, 5]])
    for metric in COSINE_METRICS:
        torch.testing.assert_close(metric(cosines), metric(without))
        assert metric(m.cosine_matrix(torch.eye(5)[:1])).isnan()
        assert metric(m.cosine_matrix(torch.zeros(3, 4))).isnan()
    assert [rank(m.singular_values(torch.zeros(3, 4))).item() for rank in RANKS] == [0, 0, 0]
    assert m.implied_gamma(torch.zeros(3, 4)) == math.inf


def test_near_rank_one_spectrum_keeps_its_small_values():
    spectrum = torch.tensor([1, 1e-2, 1e-4, 1e-6], dtype=torch.float64)
    weight = orthonormal(96)[:, :4] * spectrum @ orthonormal(64, seed=1)[:4]
    values = m.singular_values(weight)
    torch.testing.assert_close(values[:4], spectrum, rtol=1e-3, atol=0)
    assert values[4:].max() < 1e-7
    rank_one = torch.outer(randn(768), randn(768, seed=1))
    for rank in RANKS:
        assert rank(m.singular_values(rank_one)).item() == pytest.approx(1, abs=1e-4)


def test_values_that_are_not_finite_read_nan_and_spare_their_neighbours():
    batch = randn(3, 4, 5)
    batch[0, 1, 2], batch[1, 1, 2] = torch.nan, torch.inf
    for metric in WEIGHT_METRICS[: -len(NORMS)]:
        assert metric(batch).isnan().tolist() == [True, True, False]


def test_update_ratio_resolves_small_steps():
    previous = randn(8, 16)
    step = 1e-5 * randn(8, 16, seed=1)
    weight = previous + step
    exact = np.linalg.norm(weight.double() - previous.double()) / np.linalg.norm(previous.double())
    assert m.update_ratio(weight, previous).item() == pytest.approx(exact, rel=1e-5)
    old, new = previous.bfloat16(), randn(8, 16, seed=2).bfloat16()  # new - old needs rounding
    exact = np.linalg.norm(new.double() - old.double()) / np.linalg.norm(old.double())
    assert m.update_ratio(new, old).item() == pytest.approx(exact, rel=1e-6)
    assert m.update_ratio(previous, torch.zeros(8, 16)).isnan()
    assert m.update_ratio(torch.zeros(8, 16), torch.zeros(8, 16)).isnan()


def test_frobenius_norm_of_a_large_matrix_keeps_float32_accuracy():
    weight = torch.full((4096, 4096), 0.1)
    assert m.frobenius_norm(weight).item() == pytest.approx(409.6, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.3, 0.5, 1.0])
def test_implied_gamma_inverts_the_rule(gamma):
    weight = 400**-gamma * randn(300, 400)
    sampling_error = 1 / math.sqrt(2 * weight.numel()) / math.log(400)
    assert m.implied_gamma(weight).item() == pytest.approx(gamma, abs=4 * sampling_error)


@pytest.mark.parametrize(("noise", "overlap"), [(0.0, 0.0), (0.3, 0.0), (0.3, 0.5)])
def test_sorting_recovers_planted_groups_as_blocks(noise, overlap):
    sizes = torch.tensor([20, 20, 20, 9])  # equal sizes: the eigenvectors of these would mix
    label = torch.arange(4).repeat_interleave(sizes)
    sign = (-1) ** (torch.arange(len(label)) % 3 == 0).long()
    shared, *axes = orthonormal(64).float()
    directions = torch.stack(axes[:4]) * (1 - overlap) ** 0.5 + shared * overlap**0.5
    weight = sign[:, None] * directions[label] + noise / 8 * randn(len(label), 64)
    weight = torch.cat([weight, torch.zeros(5, 64)])
    block = torch.cat([2 * label + (sign > 0), torch.full((5,), -1)])
    shuffle = torch.randperm(len(block), generator=torch.Generator().manual_seed(0))
    cosines = m.cosine_matrix(weight[shuffle])

    order = m.sorted_by_alignment(torch.stack([cosines, cosines]))
    assert order.dtype == torch.int64
    assert order[0].sort().values.tolist() == list(range(len(block)))
    assert order[0].equal(order[1])
    runs = [key for key, _ in itertools.groupby(block[shuffle][order[0]].tolist())]
    assert len(runs) == 9
    assert runs[-1] == -1
    assert [key // 2 for key in runs[:8:2]] == [key // 2 for key in runs[1:8:2]]


def test_nothing_waits_for_the_device_or_depends_on_values():
    """A fake tensor has no values: reading one, or a shape that depends on them, raises."""
    with FakeTensorMode():
        weight = torch.empty(3, 6, 5)
        for metric in [*WEIGHT_METRICS, lambda w: m.update_ratio(w, w)]:
            assert metric(weight).shape == (3,)
        assert m.sorted_by_alignment(m.cosine_matrix(weight)).shape == (3, 6)


def test_autocast_does_not_lower_the_precision():
    weight = randn(8, 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = [metric(weight) for metric in WEIGHT_METRICS]
    torch.testing.assert_close(measured, [metric(weight) for metric in WEIGHT_METRICS])


@pytest.mark.parametrize("metric", [m.cosine_matrix, m.singular_values, *NORMS])
@pytest.mark.parametrize("shape", [(5,), (), (0, 5), (5, 0)])
def test_other_shapes_are_refused(metric, shape):
    with pytest.raises(ValueError, match=r"\(\.\.\., n, d\), got \("):
        metric(torch.ones(shape))


def test_update_ratio_refuses_to_broadcast():
    with pytest.raises(ValueError, match=r"\(3, 4\) against \(4,\)"):
        m.update_ratio(torch.ones(3, 4), torch.ones(4))
