"""How recorded values are laid out in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.recorder import Index

if TYPE_CHECKING:
    from lit_gamma.callbacks.base import TrajectoryCallback

_CHART_GROUPS = {
    "query and key": ("query", "key"),
    "value and output": ("value", "attention_gate", "attention_out"),
    "MLP": ("mlp_up", "mlp_gate", "mlp_down"),
    "embedding and unembedding": ("embedding", "position", "lm_head"),
    "other": ("other",),
}


def tensorboard_writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's TensorBoard writer; None without a TensorBoardLogger or off rank 0."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            writer: SummaryWriter = logger.experiment
            return writer
    return None


def picture(image: Image.Image, compress_level: int = -1) -> Summary.Image:
    """A PNG for TensorBoard, whose writer works on each byte in Python: give it few colours.

    Args:
        image: The image, with a palette.
        compress_level: zlib's, 0 .. 9; -1 for its default.
    """
    png = io.BytesIO()
    image.save(png, format="PNG", bits=8, compress_level=compress_level)
    return Summary.Image(
        height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue()
    )


def write_layout(
    writer: SummaryWriter | None,
    callbacks: Sequence[TrajectoryCallback],
    pl_module: LightningModule,
) -> None:
    """Lays out the charts of all callbacks, those with the fewest lines first."""
    if writer is not None:
        items = {c: c.items(pl_module) for c in callbacks if c.charts}
        outcomes_first = sorted(items, key=lambda c: len(items[c][1]))
        writer.add_custom_scalars(
            {c.name: grouped_charts(c.name, c.charts, *items[c]) for c in outcomes_first}
        )


def write_phases(writer: SummaryWriter | None, phases: pd.DataFrame, step: int) -> None:
    """Writes the steps of the phases as a table, under Text.

    Args:
        writer: TensorBoard's writer; nothing happens without one.
        phases: See :func:`lit_gamma.trajectory.phases`.
        step: The step at which the record ends.
    """
    if writer is None:
        return
    lines = ["| role | quantity | condensation | expansion |", "|---|---|---|---|"]
    for row in phases.to_dict("records"):
        cells = [row["role"], row["quantity"]]
        for kind in ("condensation", "expansion"):
            found, low, high = (row[f"{kind}_{part}"] for part in ("step", "low", "high"))
            cells.append("none" if np.isnan(found) else f"{found:.0f} [{low:.0f}, {high:.0f}]")
        lines.append(f"| {' | '.join(cells)} |")
    writer.add_text("phases", "\n".join(lines), step)


def grouped_charts(
    name: str, charts: Mapping[str, Sequence[str]], index: Index, labels: Sequence[str]
) -> dict[str, list[object]]:
    """Groups the tags of a table into charts with several lines.

    Args:
        name: The table's name, first part of its tags.
        charts: Title of a chart, and the quantities it shows.
        index: Columns that tell the items apart; with a ``role``, every chart is drawn once for
            each group of roles.
        labels: The items' labels, last part of the tags.

    Returns:
        Charts as ``SummaryWriter.add_custom_scalars`` takes them.
    """
    if "role" not in index:
        return {t: ["Multiline", [f"{name}/{q}" for q in shown]] for t, shown in charts.items()}
    grouped: dict[str, list[object]] = {}
    for title, quantities in charts.items():
        for group, roles in _CHART_GROUPS.items():
            lines = dict.fromkeys(
                f"{name}/{quantity}/{label}"
                for quantity in quantities
                for label, role in zip(labels, index["role"], strict=True)
                if role in roles
            )
            if lines:
                grouped[f"{title}: {group}"] = ["Multiline", list(lines)]
    return grouped
