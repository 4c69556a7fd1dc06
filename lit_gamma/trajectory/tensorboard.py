"""How recorded values are laid out in TensorBoard."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.files import AppendFile
from lit_gamma.trajectory.layouts import Measured
from lit_gamma.trajectory.table import Table

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


class EventFile:
    """TensorBoard's event file, which a disk that refuses it costs events and not the training.

    Args:
        path: The file, begun by TensorBoard's writer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = AppendFile(path)
        self._refused = False

    def write(self, event: bytes) -> None:
        """Appends an event, or leaves it out."""
        record = io.BytesIO()
        RecordWriter(record).write(event)
        try:
            self._file.append(record.getvalue())
        except OSError as error:
            if not self._refused:
                warnings.warn(
                    f"{self._path} cannot be written ({error.strerror}); training goes on, and "
                    "TensorBoard has nothing until it can be written again",
                    stacklevel=2,
                )
            self._refused = True

    def flush(self) -> None:
        """Does nothing: events are written at once."""

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def keep_writing(writer: SummaryWriter) -> SummaryWriter:
    """Makes a writer survive a full disk: from now on it writes to an :class:`EventFile`."""
    events = writer._get_file_writer().event_writer  # type: ignore[no-untyped-call]
    thread = events._async_writer
    if not isinstance(thread._writer, EventFile):
        events.flush()
        with thread._lock:
            thread._writer.close()
            thread._writer = thread._worker._record_writer = EventFile(Path(events._file_name))
    return writer


def write_values(writer: SummaryWriter, values: Iterable[Summary.Value], step: int) -> None:
    """Writes all values of a step in one summary."""
    events = writer._get_file_writer()  # type: ignore[no-untyped-call]
    events.add_summary(Summary(value=values), step)


def write_layout(writer: SummaryWriter, tables: Iterable[Table]) -> None:
    """Lays out the charts of all tables, those with the fewest lines first."""
    outcomes_first = sorted(tables, key=lambda table: len(table.labels))
    writer.add_custom_scalars({t.name: grouped_charts(t) for t in outcomes_first if t.charts})


def write_phases(
    writer: SummaryWriter, phases: pd.DataFrame, words: Iterable[str], step: int
) -> None:
    """Writes the phases in words and the steps of those of the roles as a table, under Text.

    Args:
        writer: TensorBoard's writer.
        phases: See :func:`lit_gamma.trajectory.phases`.
        words: See :func:`~lit_gamma.trajectory.phase_words.phases_in_words`.
        step: The step at which the record ends.
    """
    lines = [*(f"- {sentence}" for sentence in words), ""]
    lines += ["| role | quantity | condensation | expansion |", "|---|---|---|---|"]
    for row in phases[phases["matrix"] == ""].to_dict("records"):
        cells = [row["role"], row["quantity"]]
        for kind in ("condensation", "expansion"):
            found, low, high = (row[f"{kind}_{part}"] for part in ("step", "low", "high"))
            cells.append("none" if np.isnan(found) else f"{found:.0f} [{low:.0f}, {high:.0f}]")
        lines.append(f"| {' | '.join(cells)} |")
    writer.add_text("phases", "\n".join(lines), step)


def grouped_charts(table: Table) -> dict[str, list[object]]:
    """Groups the tags of a table into charts with several lines.

    Args:
        table: The table; with a ``role`` in its index, every chart is drawn once for each group of
            roles.

    Returns:
        Charts as ``SummaryWriter.add_custom_scalars`` takes them.
    """
    name, roles_of_items = table.name, table.index.get("role")
    if roles_of_items is None:
        return {t: ["Multiline", [f"{name}/{q}" for q in q_s]] for t, q_s in table.charts.items()}
    grouped: dict[str, list[object]] = {}
    for title, columns in table.charts.items():
        for group, roles in _CHART_GROUPS.items():
            lines = dict.fromkeys(
                f"{name}/{column}/{label}"
                for column in columns
                for label, role in zip(table.labels, roles_of_items, strict=True)
                if role in roles
            )
            if lines:
                grouped[f"{title}: {group}"] = ["Multiline", list(lines)]
    return grouped


class Scalars:
    """TensorBoard's view of a table: one summary for every step up to 100, then for each 1 % later.

    These are some 1,000 of a million steps: TensorBoard draws no more points of a tag. Items that
    share a label are averaged, each with its newest value.

    Args:
        writer: TensorBoard's writer.
        table: The table.
    """

    def __init__(self, writer: SummaryWriter, table: Table) -> None:
        self._writer = writer._get_file_writer()  # type: ignore[no-untyped-call]
        self._table = table
        of_items = table.labels or [""]
        self._labels = list(dict.fromkeys(of_items))
        self._member = np.array([[x == y for y in of_items] for x in self._labels], float)
        self._newest: dict[str, npt.NDArray[np.float64]] = {}
        self._touched = np.zeros(len(self._labels), bool)
        self._next_step = 0

    def write(self, measured: Measured, walltimes: Mapping[int, float]) -> None:
        """Writes rows sorted by step; a quantity with a null is shown over it alone."""
        steps, items, values = measured
        distinct, row = np.unique(steps, return_inverse=True)
        touching = np.zeros((len(distinct), self._member.shape[1]))
        touching[row, items] = 1
        touched = self._touched_since_shown(distinct, touching @ self._member.T > 0)
        scalars: dict[int, list[Summary.Value]] = {i: [] for i in touched}
        for name, column in values.items():
            if f"{name}_over_null" in values or not self._table.shows(name):
                continue
            tags = ["/".join(filter(None, (self._table.name, name, x))) for x in self._labels]
            means = self._means(name, row, items, column, len(distinct))
            for i, labels in touched.items():
                shown = (labels & np.isfinite(means[i])).tolist()
                scalars[i] += [
                    Summary.Value(tag=tag, simple_value=value)
                    for tag, value, show in zip(tags, means[i].tolist(), shown, strict=True)
                    if show
                ]
        for i, of_step in scalars.items():
            step = int(distinct[i])
            self._writer.add_summary(Summary(value=of_step), step, walltimes[step])

    def _touched_since_shown(
        self, steps: npt.NDArray[np.int64], touched: npt.NDArray[np.bool_]
    ) -> dict[int, npt.NDArray[np.bool_]]:
        """Position of each step to show: the labels measured since the one shown before."""
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
        column: npt.NDArray[np.floating],
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
