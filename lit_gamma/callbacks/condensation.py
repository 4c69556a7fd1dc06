"""Condensation: do neurons of one matrix point the same way?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.recording.current import WeightGroup
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.weights import TIERED, WeightTrajectory
from lit_gamma.trajectory.table import Quantity
from lit_gamma.trajectory.tensorboard import picture, text_font
from lit_gamma.weights.neurons import NeuronMatrix

MOST_LAYERS = 4
"""Layers that are drawn; of more, these are evenly spaced from the first to the last."""

_GAP = 8
_PAPER, _INK = 33, 34  # In the palette, after the colours.
_PALETTE = (colormaps["RdBu_r"](np.linspace(0, 1, 33), bytes=True)[:, :3]).flatten().tolist()


class Condensation(WeightTrajectory):
    """Records the cosine alignment of the neurons of every weight matrix.

    Neurons are rows, and pairs are distinct rows that are not zero. The mean cosine misses
    condensation onto v and -v, so the headline is the mean squared cosine over its null, which
    :class:`WeightNorms` records at every step. Here is what needs all cosines of a matrix, and the
    same headline beside it. Of more than 4096 neurons an evenly spaced selection is measured, see
    :class:`WeightGroup`. A matrix with a single neuron, or one that is not zero, has no pair: all
    quantities are NaN.

    Logged as ``2_condensation/mean_squared_cosine_over_null/<role>``, the mean over the matrices of
    a role, unless WeightNorms is; the file has the ``quantities`` below of each matrix.

    One image, ``2_condensation/cosines``: of each matrix the cosines between all rows from -1
    (blue) over 0 (white) to 1 (red), rows ordered so that neurons that condensed together form
    blocks; a row of heat maps for each layer, of many layers for four, of heads for the first.

    Args:
        schedule: The steps to record all matrices; by default the first three and log-spaced ones.
        matrices_per_step: See :class:`WeightTrajectory`.
        pictures: The steps to draw; by default two per factor of ten.
        heatmap_roles: The roles to draw, see :data:`lit_gamma.weights.neurons.ROLES`.
        heatmap_rows: Most rows in an image; of more, an evenly spaced selection is drawn.
    """

    default_schedule = TIERED
    default_pictures = Schedule(per_decade=2)
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

    section = "2"

    def __init__(
        self,
        schedule: Schedule | None = None,
        matrices_per_step: float | None = None,
        pictures: Schedule | None = None,
        heatmap_roles: Sequence[str] = ("embedding", "query", "key", "value", "mlp_up", "lm_head"),
        heatmap_rows: int = 128,
    ) -> None:
        super().__init__(schedule, matrices_per_step, pictures)
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
        rows = chosen_rows(self.run.weights.matrices, self.heatmap_roles)
        chosen = {label for row in rows for label in row}
        painted: dict[str, Image.Image] = {}
        for group in self.run.weights.groups(self.run.step):  # On all ranks: it may gather.
            shown = [i for i, m in enumerate(group.matrices) if m.label in chosen]
            if self.run.pictured and shown:
                images = heatmaps([group.weight[i] for i in shown], self.heatmap_rows)
                painted |= zip((group.matrices[i].label for i in shown), images, strict=True)
        if painted:
            image = picture(sheet(rows, painted), compress_level=1)
            self.run.show(f"{self.group}/cosines", image)


def chosen_rows(matrices: Sequence[NeuronMatrix], roles: Sequence[str]) -> list[list[str]]:
    """Labels of the matrices to draw, a row per layer, of many layers for some; then the others."""
    matrices = [m for m in matrices if not m.head]
    layers = sorted({m.layer for m in matrices if m.layer is not None})
    n = min(len(layers), MOST_LAYERS)
    kept = [layers[i] for i in np.linspace(0, len(layers) - 1, n).round().astype(int)]
    rows = [
        [m.label for m in matrices if m.layer == layer and m.role in roles]
        for layer in [*kept, None]
    ]
    return [row for row in rows if row]


def heatmaps(neurons: Sequence[Tensor], max_rows: int) -> list[Image.Image]:
    """Paints the cosines between neurons, ordered so that aligned ones form blocks.

    Args:
        neurons: Matrices of one shape (n, d_in).
        max_rows: Most neurons to paint; of more, an evenly spaced selection.

    Returns:
        For each matrix an image of min(n, max_rows) rows: 0 for -1, 16 for 0, 32 for 1.
    """
    n = len(neurons[0])
    chosen = torch.linspace(0, n - 1, min(n, max_rows)).round().long()
    cosines = metrics.cosine_matrix(torch.stack([matrix[chosen] for matrix in neurons]))
    order = metrics.sorted_by_alignment(cosines)
    cosines = cosines.take_along_dim(order[:, :, None], 1).take_along_dim(order[:, None, :], 2)
    levels = ((cosines + 1) * 16).round().to(torch.uint8).cpu().numpy()
    return [Image.fromarray(level) for level in levels]


def sheet(rows: Sequence[Sequence[str]], painted: Mapping[str, Image.Image]) -> Image.Image:
    """Lays heat maps out under their names, beside the scale of their colours.

    Args:
        rows: The names in each row.
        painted: Name to what :func:`heatmaps` has painted.

    Returns:
        An image of 35 colours.
    """
    font, letter, line = text_font()
    cell = max(128, *(image.width for image in painted.values()))
    pitch = max(cell, letter * max(map(len, painted))) + _GAP
    width = max(len(row) for row in rows) * pitch
    height = len(rows) * (cell + line + _GAP)
    whole = Image.new("P", (width + 16 + 3 * letter, height), _PAPER)
    whole.putpalette([*_PALETTE, 255, 255, 255, 0, 0, 0])
    pen = ImageDraw.Draw(whole)
    for y, row in enumerate(rows):
        for x, label in enumerate(row):
            left, top = x * pitch, y * (cell + line + _GAP)
            pen.text((left, top), label, fill=_INK, font=font)
            whole.paste(
                painted[label].resize((cell, cell), Image.Resampling.NEAREST), (left, top + line)
            )
    for level in range(33):
        top = line + (32 - level) * 4
        pen.rectangle((width, top, width + 12, top + 3), fill=level)
    for level, text in ((32, "1"), (16, "0"), (0, "-1")):
        pen.text((width + 16, line + (32 - level) * 4 - 6), text, fill=_INK, font=font)
    return whole
