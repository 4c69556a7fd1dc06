"""How recorded values are laid out in TensorBoard."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import font_manager
from PIL import Image, ImageFont
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.files import AppendFile
from lit_gamma.trajectory.lines import Shown, View
from lit_gamma.trajectory.table import Table

_CHART_GROUPS = {
    "query and key": ("query", "key"),
    "value and output": ("value", "attention_gate", "attention_out"),
    "MLP": ("mlp_up", "mlp_gate", "mlp_down"),
    "embeddings": ("embedding", "position"),
    "unembedding": ("lm_head",),
    "other": ("other",),
}

MOST_LINES = 8
"""Lines of a chart; more cannot be told apart."""


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


@cache
def text_font() -> tuple[ImageFont.FreeTypeFont, int, int]:
    """A font of equally wide letters, which matplotlib brings, and the size of a letter."""
    size = 13
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans Mono"), size)
    return font, math.ceil(font.getlength("m")), size + 4


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


def curves(writer: SummaryWriter) -> View:
    """TensorBoard's view of the record: one summary for each step that is shown."""
    events = writer._get_file_writer()  # type: ignore[no-untyped-call]

    def show(shown: Shown) -> None:
        values = [Summary.Value(tag=t, simple_value=v) for t, v in shown.values.items()]
        events.add_summary(Summary(value=values), shown.step, shown.walltime)

    return show


def write_layout(writer: SummaryWriter, tables: Iterable[Table]) -> None:
    """Lays out the charts of all tables, in the order of their tags."""
    charts: dict[str, dict[str, list[object]]] = {}
    for table in tables:
        for title, (kind, tags) in grouped_charts(table).items():
            charts.setdefault(tags[0].partition("/")[0], {})[title] = [kind, tags]
    writer.add_custom_scalars(dict(sorted(charts.items())))


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
            span = f"{found:.0f} [{low:.0f}, {high:.0f}]".replace("inf", "∞")
            cells.append("none" if np.isnan(found) else span)
        lines.append(f"| {' | '.join(cells)} |")
    writer.add_text("phases", "\n".join(lines), step)


def grouped_charts(table: Table) -> dict[str, tuple[str, list[str]]]:
    """Groups the tags of a table into charts of at most :data:`MOST_LINES` lines.

    Args:
        table: The table; with a ``role`` in its index, every chart is drawn once for each group of
            roles.

    Returns:
        Title to kind and tags, as ``SummaryWriter.add_custom_scalars`` takes them.
    """
    roles = table.index.get("role", [""] * table.n_items)
    grouped: dict[str, tuple[str, list[str]]] = {}
    for title, columns in table.charts.items():
        lines: dict[str, dict[str, None]] = {}
        for column in columns:
            for tag, role in zip(table.tags(column), roles, strict=True):
                part = "" if table.joined(column) else group_of(role)
                lines.setdefault(": ".join(filter(None, (title, part))), {})[tag] = None
        for name, tags in lines.items():
            for i in range(0, len(tags), MOST_LINES):
                more = f" ({i // MOST_LINES + 1})" if i else ""
                grouped[name + more] = "Multiline", list(tags)[i : i + MOST_LINES]
    return grouped


def group_of(role: str) -> str:
    """The chart that shows a role; empty for none."""
    return next((group for group, roles in _CHART_GROUPS.items() if role in roles), "")
