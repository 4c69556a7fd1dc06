"""Condensation: do neurons of one matrix point the same way?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.recording.current import WeightGroup
from lit_gamma.recording.schedule import PICTURES, Schedule
from lit_gamma.recording.weights import TIERED, WeightTrajectory
from lit_gamma.trajectory.table import Quantity
from lit_gamma.trajectory.tensorboard import picture, write_values

_PALETTE = (colormaps["RdBu_r"](np.linspace(0, 1, 33), bytes=True)[:, :3]).flatten().tolist()


class Condensation(WeightTrajectory):
    """Records the cosine alignment of the neurons of every weight matrix.

    Neurons are rows, and pairs are distinct rows that are not zero. The mean cosine, which
    :class:`WeightNorms` records, misses condensation onto v and -v, so the headline is the mean
    squared cosine over its null. Of more than 4096 neurons an evenly spaced selection is measured,
    see :class:`WeightGroup`. A matrix with a single neuron, or one that is not zero, has no pair:
    all quantities are NaN.

    Logged as ``condensation/mean_squared_cosine_over_null/<matrix>``; the file has all of the
    ``quantities`` below.

    Images, as ``condensation/cosines/<matrix>``: the cosines between all rows from -1 (blue) over 0
    (white) to 1 (red), rows ordered so that neurons that condensed together form blocks.

    Args:
        schedule: The steps to record all matrices; by default the first three and log-spaced ones.
        overhead: See :class:`WeightTrajectory`.
        matrices_per_step: See :class:`WeightTrajectory`.
        pictures: The steps to draw; by default four per factor of ten.
        heatmap_roles: The roles to draw, see :data:`lit_gamma.weights.neurons.ROLES`.
        heatmap_rows: Most rows in an image; of more, an evenly spaced selection is drawn.
    """

    default_schedule = TIERED
    default_pictures = PICTURES
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "mean_squared_cosine",
            "mean cos² between distinct rows",
            range="0..1",
            note="null 1/d_in",
            null=lambda n_neurons, d_in: metrics.null_mean_squared_cosine(d_in),
            null_formula="1 / d",
            chart="cos² ÷ null",
        ),
        Quantity(
            "mean_absolute_cosine",
            "mean |cos| between distinct rows",
            range="0..1",
            null=lambda n_neurons, d_in: metrics.null_mean_absolute_cosine(d_in),
            null_formula="≈ √(2 / (π d))",
        ),
        Quantity(
            "aligned_fraction",
            "share of pairs of rows with |cos| > 0.9",
            range="0..1",
        ),
        Quantity(
            "opposed_fraction",
            "share of pairs of rows with cos < -0.9",
            range="0..1",
        ),
    )

    def __init__(
        self,
        schedule: Schedule | None = None,
        overhead: float | None = 0.005,
        matrices_per_step: float | None = None,
        pictures: Schedule | None = None,
        heatmap_roles: Sequence[str] = ("embedding", "query", "key", "value", "mlp_up", "lm_head"),
        heatmap_rows: int = 128,
    ) -> None:
        super().__init__(schedule, overhead, matrices_per_step, pictures)
        self.heatmap_roles = heatmap_roles
        self.heatmap_rows = heatmap_rows

    @override
    def measure(self, weights: WeightGroup) -> Mapping[str, Tensor]:
        cosines = weights.cosines
        return {
            "mean_squared_cosine": metrics.mean_squared_cosine(cosines),
            "mean_absolute_cosine": metrics.mean_absolute_cosine(cosines),
            "aligned_fraction": metrics.aligned_fraction(cosines),
            "opposed_fraction": metrics.opposed_fraction(cosines),
        }

    @override
    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        images = []
        for group in self.run.weights.groups(self.run.step):  # On all ranks: it may gather.
            shown = [i for i, m in enumerate(group.matrices) if m.role in self.heatmap_roles]
            if writer is None or not shown:
                continue
            painted = heatmaps([group.weight[i] for i in shown], self.heatmap_rows)
            for i, image in zip(shown, painted, strict=True):
                tag = f"{self.name}/cosines/{group.matrices[i].label}"
                images.append(Summary.Value(tag=tag, image=image))
        if writer is not None:
            write_values(writer, images, self.run.step)


def heatmaps(neurons: Sequence[Tensor], max_rows: int) -> list[Summary.Image]:
    """Paints the cosines between neurons, ordered so that aligned ones form blocks.

    Args:
        neurons: Matrices of one shape (n, d_in).
        max_rows: Most neurons to paint; of more, an evenly spaced selection.

    Returns:
        For each matrix a PNG of min(n, max_rows) rows: blue -1, white 0, red 1, in 33 colours.
    """
    n = len(neurons[0])
    chosen = torch.linspace(0, n - 1, min(n, max_rows)).round().long()
    cosines = metrics.cosine_matrix(torch.stack([matrix[chosen] for matrix in neurons]))
    order = metrics.sorted_by_alignment(cosines)
    cosines = cosines.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    painted = []
    for level in ((cosines + 1) * 16).round().to(torch.uint8).cpu().numpy():
        image = Image.fromarray(level).convert("L")
        image.putpalette(_PALETTE)
        painted.append(picture(image, compress_level=1))
    return painted
