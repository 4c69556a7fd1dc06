"""An example of a callback: are the weights still Gaussian?"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lit_gamma.callbacks import WeightGroup, WeightTrajectory


class Kurtosis(WeightTrajectory):
    """Records the kurtosis of every weight matrix, 3 for Gaussian weights.

    Add it to a run by ``--trainer.callbacks+=Kurtosis``.
    """

    def measure(self, weights: WeightGroup) -> Mapping[str, Tensor]:
        """Takes all matrices of one shape, (b, n_neurons, d_in), and returns b values."""
        z = weights.weight / weights.weight.std((1, 2), keepdim=True)
        return {"kurtosis": (z**4).mean((1, 2))}

    def null(self, n_neurons: int, d_in: int) -> Mapping[str, float]:
        """The value of a Gaussian matrix, by which the record is divided."""
        return {"kurtosis": 3.0}
