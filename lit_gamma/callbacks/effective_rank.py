"""Effective rank: in how many directions does a weight matrix act?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.recording.current import WeightGroup
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.recording.weights import TIERED, WeightTrajectory
from lit_gamma.trajectory.table import Quantity


class EffectiveRank(WeightTrajectory):
    """Records three ranks of every weight matrix, from its singular values s.

    They see different parts of the spectrum: the effective rank is slow to move, the participation
    ratio and the stable rank follow the few largest values.

    Logged as ``3_effective_rank/<quantity>_over_null/<role>``, the mean over the matrices of a
    role, effective and stable rank; the file has the ``quantities`` below of each matrix, of n
    neurons with d inputs.

    Histograms, as ``3_effective_rank/spectrum``: the singular values of all matrices, each in units
    of the largest that a random matrix of this shape and rms has, rms (√n + √d).

    Args:
        schedule: The steps to record all matrices; by default the first three and log-spaced ones.
        matrices_per_step: See :class:`WeightTrajectory`.
        pictures: The steps to write the histograms; by default two per factor of ten.
    """

    default_schedule = TIERED
    default_pictures = Schedule(per_decade=2)
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "effective_rank",
            "exp of the entropy of s / sum(s) (Roy & Vetterli 2007)",
            range="1..min(n, d)",
            null=metrics.null_effective_rank,
            null_formula="Marchenko-Pastur quadrature",
            chart="effective rank ÷ null",
        ),
        Quantity(
            "participation_ratio",
            "sum(s^2)^2 / sum(s^4)",
            range="1..min(n, d)",
            null=metrics.null_participation_ratio,
            null_formula="(nd + 2) / (n + d + 1)",
        ),
        Quantity(
            "stable_rank",
            "sum(s^2) / max(s^2)",
            range="1..min(n, d)",
            null=metrics.null_stable_rank,
            null_formula="≈ nd / (√n + √d)²",
            chart="stable rank ÷ null",
        ),
    )

    section = "3"

    def __init__(
        self,
        schedule: Schedule | None = None,
        matrices_per_step: float | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(schedule, matrices_per_step, pictures)
        self._waits = False

    @override
    def take(self) -> None:
        self._waits = self.draws(self.run.step)  # A histogram waits for the spectra: shared then.
        super().take()

    @override
    def measure(self, weights: WeightGroup) -> Mapping[str, Tensor]:
        if self._waits:
            return {"singular_values": weights.singular_values}
        return {"gram": weights.gram}

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        s = measured.get("singular_values")
        if s is None:
            s = metrics.singular_values_of_gram(measured["gram"])
        return metrics.ranks(s)

    @override
    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        spectra: dict[str, list[Tensor]] = {}
        for group in self.run.weights.groups(self.run.step):  # On all ranks: it may gather.
            if writer is None:
                continue
            n, d = group.weight.shape[1:]
            with side_stream(group.weight.device):
                s = group.singular_values.cpu()
            edge = s.norm(dim=1, keepdim=True) / math.sqrt(n * d) * (math.sqrt(n) + math.sqrt(d))
            for matrix, spectrum in zip(group.matrices, s / edge, strict=True):
                tag = f"/{matrix.label}" if self.run.all_tags else ""
                spectra.setdefault(f"{self.group}/spectrum{tag}", []).append(spectrum)
        for tag, parts in spectra.items():
            assert writer is not None
            writer.add_histogram(tag, torch.cat(parts).numpy(), self.run.step, bins=30)
