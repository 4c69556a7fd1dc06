"""Weight norms: how large is a matrix, and how fast does it change?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma import metrics
from lit_gamma.callbacks.base import EVERY_STEP
from lit_gamma.callbacks.schedule import Schedule
from lit_gamma.callbacks.weights import WeightGroup, WeightTrajectory, weight_groups


class WeightNorms(WeightTrajectory):
    """Records the size of every weight matrix.

    Logged, as ``weight_norms/<quantity>/<matrix>``:

    ============== ========================================================== ================
    quantity       meaning                                                    at initialization
    ============== ========================================================== ================
    frobenius_norm ‖W‖_F                                                      d_in^(-γ) √(nd)
    rms            root mean square of the entries                            d_in^(-γ)
    max_row_norm   norm of the largest neuron
    spectral_norm  largest singular value                                     d_in^(-γ) (√n + √d)
    implied_gamma  -ln(rms) / ln(d_in): the γ whose rule gives this rms       γ
    update_ratio   ‖W - W'‖_F / ‖W'‖_F, W' the weights of the recorded step
                   before; NaN at the first
    ============== ========================================================== ================

    Args:
        schedule: The steps to record.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "frobenius_norm": "Frobenius norm; >= 0",
        "rms": "root mean square of the entries; >= 0; d_in^-gamma at initialization",
        "max_row_norm": "norm of the largest neuron (row); >= 0",
        "spectral_norm": "largest singular value; >= 0",
        "implied_gamma": "-ln(rms) / ln(d_in); gamma at initialization",
        "update_ratio": "norm of the change since the recorded step before, over the norm then",
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "implied γ": ["implied_gamma"],
        "update ratio": ["update_ratio"],
        "spectral norm": ["spectral_norm"],
    }

    def __init__(self, schedule: Schedule = EVERY_STEP) -> None:
        super().__init__(schedule)
        self._previous: dict[int, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record; after a resume the checkpoint's weights are the ones before."""
        self._previous.clear()
        if self._last_step == trainer.global_step:
            for group in weight_groups(trainer, pl_module):
                self._previous[group.positions[0]] = group.weight
        super().on_train_start(trainer, pl_module)

    def measure(self, weights: WeightGroup) -> Mapping[str, Tensor]:
        """See :class:`WeightTrajectory`."""
        weight = weights.weight
        previous = self._previous.get(weights.positions[0])
        nan = torch.full(weight.shape[:1], torch.nan, device=weight.device)
        self._previous[weights.positions[0]] = weight
        return {
            "frobenius_norm": metrics.frobenius_norm(weight),
            "rms": metrics.rms(weight),
            "max_row_norm": metrics.max_row_norm(weight),
            "spectral_norm": weights.singular_values[:, 0],
            "implied_gamma": metrics.implied_gamma(weight),
            "update_ratio": nan if previous is None else metrics.update_ratio(weight, previous),
        }
