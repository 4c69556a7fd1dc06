"""The metrics as torchmetrics classes: the mean over all weight matrices seen.

Values accumulate on the device and across processes. One NaN makes the mean NaN, so a layer without
a defined value cannot go unnoticed.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_gamma.metrics.condensation import (
    aligned_fraction,
    cosine_matrix,
    mean_absolute_cosine,
    mean_cosine,
    mean_squared_cosine,
)
from lit_gamma.metrics.rank import (
    effective_rank,
    participation_ratio,
    singular_values,
    stable_rank,
)
from lit_gamma.metrics.size import update_ratio


class _MeanOverMatrices(Metric):
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0), dist_reduce_fx="sum")

    def _add(self, values: Tensor) -> None:
        self.total += values.sum()
        self.count += values.numel()

    def compute(self) -> Tensor:
        """Returns the mean over matrices, a float32 scalar; NaN if any value was NaN."""
        return self.total / self.count


class _WeightMetric(_MeanOverMatrices):
    def _measure(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, weight: Tensor) -> None:
        """Adds the value of every matrix in `weight`, shape (..., n, d), rows are neurons."""
        self._add(self._measure(weight))


class MeanCosine(_WeightMetric):
    """Mean cosine between neurons: see `mean_cosine`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return mean_cosine(cosine_matrix(weight))


class MeanSquaredCosine(_WeightMetric):
    """Mean squared cosine between neurons: see `mean_squared_cosine`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return mean_squared_cosine(cosine_matrix(weight))


class MeanAbsoluteCosine(_WeightMetric):
    """Mean absolute cosine between neurons: see `mean_absolute_cosine`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return mean_absolute_cosine(cosine_matrix(weight))


class AlignedFraction(_WeightMetric):
    """Fraction of pairs of neurons with |cos| > threshold: see `aligned_fraction`.

    Args:
        threshold: Cosine above which, in absolute value, a pair counts as aligned.
        kwargs: Passed to `torchmetrics.Metric`.
    """

    def __init__(self, threshold: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def _measure(self, weight: Tensor) -> Tensor:
        return aligned_fraction(cosine_matrix(weight), self.threshold)


class EffectiveRank(_WeightMetric):
    """Exponential of the entropy of the singular values: see `effective_rank`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return effective_rank(singular_values(weight))


class StableRank(_WeightMetric):
    """Squared Frobenius norm over squared spectral norm: see `stable_rank`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return stable_rank(singular_values(weight))


class ParticipationRatio(_WeightMetric):
    """Participation ratio of the squared singular values: see `participation_ratio`."""

    def _measure(self, weight: Tensor) -> Tensor:
        return participation_ratio(singular_values(weight))


class UpdateRatio(_MeanOverMatrices):
    """Relative change since the previous weights: see `update_ratio`."""

    def update(self, weight: Tensor, previous: Tensor) -> None:
        """Adds the change of every matrix from `previous` to `weight`, both (..., n, d)."""
        self._add(update_ratio(weight, previous))
