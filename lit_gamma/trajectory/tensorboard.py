"""How recorded values are laid out in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightning import LightningModule
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.trajectory.table import Index

if TYPE_CHECKING:
    from lit_gamma.recording.callback import TrajectoryCallback

_CHART_GROUPS = {
    "query and key": ("query", "key"),
    "value and output": ("value", "attention_gate", "attention_out"),
    "MLP": ("mlp_up", "mlp_gate", "mlp_down"),
    "embedding and unembedding": ("embedding", "position", "lm_head"),
    "other": ("other",),
}


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


class Scalars:
    """TensorBoard's view of a table: steps that are 1 % apart, one summary for each."""

    def __init__(
        self, writer: SummaryWriter, table: str, labels: Sequence[str], charted: Collection[str]
    ) -> None:
        self._writer = writer._get_file_writer()  # type: ignore[no-untyped-call]
        self._table = table
        self._charted = charted
        self._labels = list(dict.fromkeys(labels)) or [""]
        self._member = np.array([[x == y for y in labels or [""]] for x in self._labels], float)
        self._newest: dict[str, npt.NDArray[np.float64]] = {}
        self._touched = np.zeros(len(self._labels), bool)
        self._next_step = 0

    def write(
        self,
        steps: npt.NDArray[np.int64],
        items: npt.NDArray[np.int64],
        walltimes: Mapping[int, float],
        values: Mapping[str, npt.NDArray[np.float64]],
    ) -> None:
        """Writes rows sorted by step."""
        distinct, row = np.unique(steps, return_inverse=True)
        measured = np.zeros((len(distinct), self._member.shape[1]))
        measured[row, items] = 1
        touched = self._touched_since_shown(distinct, measured @ self._member.T > 0)
        scalars: dict[int, list[Any]] = {i: [] for i in touched}
        for name, column in values.items():
            if self._charted and name not in self._charted:
                continue
            tags = ["/".join(filter(None, (self._table, name, x))) for x in self._labels]
            means = self._means(name, row, items, column, len(distinct))
            for i, labels in touched.items():
                shown = (labels & np.isfinite(means[i])).tolist()
                scalars[i] += [
                    Summary.Value(tag=tag, simple_value=value)
                    for tag, value, show in zip(tags, means[i].tolist(), shown, strict=True)
                    if show
                ]
        for i, values_ in scalars.items():
            step = int(distinct[i])
            self._writer.add_summary(Summary(value=values_), step, walltimes[step])

    def _touched_since_shown(
        self, steps: npt.NDArray[np.int64], touched: npt.NDArray[np.bool_]
    ) -> dict[int, npt.NDArray[np.bool_]]:
        """Of each step to show, its position: the labels measured since the one shown before."""
        since = {}
        for i, step in enumerate(steps.tolist()):
            self._touched = self._touched | touched[i]
            if step >= self._next_step:
                since[i] = self._touched
                self._touched = np.zeros_like(self._touched)
                self._next_step = step + 1 + step // 100
        return since

    def _means(
        self,
        name: str,
        row: npt.NDArray[np.int64],
        items: npt.NDArray[np.int64],
        column: npt.NDArray[np.float64],
        n_steps: int,
    ) -> npt.NDArray[np.float64]:
        """Means over the newest values of the items of each label, (n_steps, n_labels)."""
        grid = np.full((n_steps + 1, self._member.shape[1]), np.nan)
        grid[0] = self._newest.get(name, np.nan)
        grid[row + 1, items] = column
        known = np.isfinite(grid)
        newest = np.maximum.accumulate(np.where(known, np.arange(len(grid))[:, None], 0), axis=0)
        grid = np.take_along_axis(grid, newest, axis=0)
        self._newest[name] = grid[-1]
        known = np.isfinite(grid[1:])
        means: npt.NDArray[np.float64] = np.where(known, grid[1:], 0) @ self._member.T
        with np.errstate(invalid="ignore"):
            means /= known @ self._member.T
        return means
