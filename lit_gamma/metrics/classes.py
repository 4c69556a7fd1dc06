"""The metrics as torchmetrics classes: the mean over all weight matrices seen.

Values accumulate on the device and across processes. One NaN makes the mean NaN, so a layer without
a defined value cannot go unnoticed.
"""

from typing import Any

from torch import Tensor
from torchmetrics import MeanMetric

from lit_gamma.metrics import condensation, rank, size


class _MeanOverMatrices(MeanMetric):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(nan_strategy="disable", **kwargs)

    def _measure(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def update(self, weight: Tensor) -> None:  # type: ignore[override]  # Matrices, not values.
        """Adds the value of every matrix in `weight`, shape (..., n, d), rows are neurons."""
        self._add(self._measure(weight))

    def _add(self, values: Tensor) -> None:
        # MeanMetric.update would round float64 values to float32 before it sums them.
        self.mean_value += values.sum()
        self.weight += values.numel()


class MeanCosine(_MeanOverMatrices):
    """Averages `mean_cosine`, the mean cosine between neurons.

    Example:
        >>> import torch
        >>> metric = MeanCosine()
        >>> metric.update(torch.eye(2))
        >>> metric.update(torch.ones(2, 1))
        >>> metric.compute()
        tensor(0.5000)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return condensation.mean_cosine(condensation.cosine_matrix(weight))


class MeanSquaredCosine(_MeanOverMatrices):
    """Averages `mean_squared_cosine`, the mean squared cosine between neurons.

    Example:
        >>> import torch
        >>> MeanSquaredCosine()(torch.stack([torch.eye(2), torch.ones(2, 2)]))
        tensor(0.5000)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return condensation.mean_squared_cosine(condensation.cosine_matrix(weight))


class MeanAbsoluteCosine(_MeanOverMatrices):
    """Averages `mean_absolute_cosine`, the mean absolute cosine between neurons.

    Example:
        >>> import torch
        >>> MeanAbsoluteCosine()(torch.tensor([[1.0], [-1.0]]))
        tensor(1.)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return condensation.mean_absolute_cosine(condensation.cosine_matrix(weight))


class AlignedFraction(_MeanOverMatrices):
    """Averages `aligned_fraction`, the fraction of pairs of neurons with ``|cos|`` > threshold.

    Args:
        threshold: Cosine above which, in absolute value, a pair counts as aligned.
        kwargs: Passed to `torchmetrics.Metric`.

    Example:
        >>> import torch
        >>> AlignedFraction(threshold=0.5)(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]))
        tensor(0.3333)
    """

    def __init__(self, threshold: float = 0.9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def _measure(self, weight: Tensor) -> Tensor:
        return condensation.aligned_fraction(condensation.cosine_matrix(weight), self.threshold)


class EffectiveRank(_MeanOverMatrices):
    """Averages `effective_rank`, the exponential of the entropy of the singular values.

    Example:
        >>> import torch
        >>> EffectiveRank()(torch.stack([torch.eye(2), torch.ones(2, 2)]))
        tensor(1.5000)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return rank.effective_rank(rank.singular_values(weight))


class StableRank(_MeanOverMatrices):
    """Averages `stable_rank`, the squared Frobenius norm over the squared spectral norm.

    Example:
        >>> import torch
        >>> StableRank()(torch.diag(torch.tensor([2.0, 1.0])))
        tensor(1.2500)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return rank.stable_rank(rank.singular_values(weight))


class ParticipationRatio(_MeanOverMatrices):
    """Averages `participation_ratio`, of the squared singular values.

    Example:
        >>> import torch
        >>> ParticipationRatio()(torch.diag(torch.tensor([3.0, 1.0])))  # 10² / 82
        tensor(1.2195)
    """

    def _measure(self, weight: Tensor) -> Tensor:
        return rank.participation_ratio(rank.singular_values(weight))


class UpdateRatio(_MeanOverMatrices):
    """Averages `update_ratio`, the relative change since the previous weights.

    Example:
        >>> import torch
        >>> UpdateRatio()(torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]]))
        tensor(0.1000)
    """

    def update(self, weight: Tensor, previous: Tensor) -> None:  # type: ignore[override]
        """Adds the change of every matrix from `previous` to `weight`, both (..., n, d)."""
        self._add(size.update_ratio(weight, previous))
