"""The torchmetrics classes against the functions that they average."""

import pytest
import torch

from lit_gamma import metrics as m


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("metric_class", "expected"),
    [
        (m.MeanCosine, lambda w: m.mean_cosine(m.cosine_matrix(w))),
        (m.MeanSquaredCosine, lambda w: m.mean_squared_cosine(m.cosine_matrix(w))),
        (m.MeanAbsoluteCosine, lambda w: m.mean_absolute_cosine(m.cosine_matrix(w))),
        (lambda: m.AlignedFraction(0.5), lambda w: m.aligned_fraction(m.cosine_matrix(w), 0.5)),
        (m.StableRank, lambda w: m.stable_rank(m.singular_values(w))),
        (m.ParticipationRatio, lambda w: m.participation_ratio(m.singular_values(w))),
        (m.EffectiveRank, lambda w: m.effective_rank(m.singular_values(w))),
        (m.UpdateRatio, m.update_ratio),
    ],
)
def test_classes_average_over_matrices_and_merge(metric_class, expected):
    batch = randn(5, 6, 4), randn(5, 6, 4, seed=1)
    batch = batch if metric_class is m.UpdateRatio else batch[:1]
    whole, first, second = metric_class(), metric_class(), metric_class()
    whole.update(*batch)
    first.update(*(tensor[:2] for tensor in batch))
    for index in range(2, 5):
        second.update(*(tensor[index] for tensor in batch))
    first.merge_state(second)
    torch.testing.assert_close(whole.compute(), expected(*batch).mean())
    torch.testing.assert_close(first.compute(), whole.compute())
    undefined = torch.full((6, 4), torch.nan)
    whole.update(*(undefined for _ in batch))
    assert whole.compute().isnan()


def test_classes_sum_float64_values_before_they_round():
    """One such change rounds to 1 in float32; the sum of three does not round to 3."""
    previous = torch.ones(3, 1, 1, dtype=torch.float64)
    metric = m.UpdateRatio()
    metric.update(previous + (1 + 0.9 * 2**-24), previous)
    assert metric.compute().dtype == torch.float32
    assert metric.compute() > 1


@pytest.mark.parametrize("name", m.__all__)
def test_everything_public_shows_an_example(name):
    assert ">>> " in getattr(m, name).__doc__
