"""Where recorded values go: an Arrow stream per table, and TensorBoard.

A table has one row per (step, item) and one column per quantity. Its file is an Arrow IPC stream,
``datasets.Dataset.from_file(path).to_pandas()``; every batch is written whole, so a killed process
leaves a readable file.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import torch
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

Index = Mapping[str, Sequence[Any]]
"""The columns that say which item a row is about, each with one value per item."""


class Recorder:
    """Collects the values of one table and writes them in batches.

    Values stay on their device until :meth:`flush`, which moves all of them at once. TensorBoard
    gets one summary per step; an item whose label it shares with others is averaged with them.

    Args:
        path: The table's file, ``<run_dir>/trajectory/<name>.arrow``.
        index: Columns that say which item a row is about, each with one value per item.
        labels: Name of each item in TensorBoard; empty for a table with a single, nameless item.
        nulls: Expected value of a quantity for a random matrix, one per item. Such a quantity gets
            a second column, ``<quantity>_over_null``, which is what TensorBoard shows.
        meanings: What a quantity is, for the schema.
        metadata: What the run is, for the schema.
        writer: TensorBoard's writer, if there is one.
        kept: Batches of an earlier record to continue.
    """

    def __init__(
        self,
        path: Path,
        index: Index,
        labels: Sequence[str],
        nulls: Mapping[str, npt.NDArray[np.float64]],
        meanings: Mapping[str, str],
        metadata: Mapping[str, Any],
        writer: SummaryWriter | None,
        kept: Sequence[pa.RecordBatch] = (),
    ) -> None:
        self.path = path
        self._index = index
        self._labels = labels
        self._nulls = nulls
        self._meanings = meanings
        self._metadata = metadata
        self._writer = writer
        self._quantities: list[str] = []
        self._pending: list[tuple[int, float, Tensor]] = []
        self._table: _Table | None = None
        self._warned = False
        if kept:
            self._table = _Table(path, kept[0].schema, kept)
            self._show_again(kept)

    def append(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Takes the values at one step.

        Args:
            step: Optimizer steps taken before.
            values: For each quantity a tensor of shape (n_items,); the same names at every step.
        """
        self._quantities = self._quantities or list(values)
        stacked = torch.stack([values[name].detach().float() for name in self._quantities], dim=-1)
        self._pending.append((step, time.time(), stacked))

    def __len__(self) -> int:
        """Number of steps that wait to be written."""
        return len(self._pending)

    def flush(self) -> None:
        """Writes what is pending: one transfer from the device, one batch, one summary a step."""
        if not self._pending:
            return
        steps = np.array([step for step, _, _ in self._pending])
        walltimes = [walltime for _, walltime, _ in self._pending]
        block = torch.stack([values for _, _, values in self._pending]).cpu().numpy()
        values = {name: block[:, :, i] for i, name in enumerate(self._quantities)}
        ratios = {
            f"{n}_over_null": v / self._nulls[n] for n, v in values.items() if n in self._nulls
        }
        try:
            self._write_rows(steps, {**values, **ratios})
        except OSError as error:
            self._warn_of_hole(steps, error)
        self._pending.clear()
        unlike = {name: v for name, v in values.items() if name not in self._nulls}
        self._write_summaries(steps, walltimes, {**ratios, **unlike})

    def close(self) -> None:
        """Flushes and ends the file."""
        self.flush()
        if self._table is not None:
            self._table.close()

    def _write_rows(self, steps: npt.NDArray[np.int64], values: dict[str, Any]) -> None:
        n_steps, n_items = len(steps), next(iter(values.values())).shape[1]
        columns: dict[str, Any] = {"step": steps.repeat(n_items)}
        columns |= {name: list(items) * n_steps for name, items in self._index.items()}
        columns |= {name: value.astype(np.float32).ravel() for name, value in values.items()}
        if self._table is None:
            self._table = _Table(self.path, self._schema(list(values)))
        self._table.append(columns)

    def _warn_of_hole(self, steps: npt.NDArray[np.int64], error: OSError) -> None:
        if not self._warned:
            self._warned = True
            rank_zero_warn(
                f"{self.path} cannot be written ({error}); training goes on, but its record has no "
                f"steps {steps[0]} to {steps[-1]}, and no later ones until there is room again"
            )

    def _schema(self, quantities: Sequence[str]) -> pa.Schema:
        fields = [pa.field("step", pa.int64(), metadata={"meaning": "optimizer steps taken"})]
        fields += [pa.field(name, pa.array(items).type) for name, items in self._index.items()]
        for name in quantities:
            meaning = self._meanings.get(name, "")
            if name.endswith("_over_null"):
                meaning = "the quantity / its expectation for a Gaussian matrix of this shape"
            fields.append(pa.field(name, pa.float32(), metadata={"meaning": meaning}))
        return pa.schema(fields, metadata={"lit_gamma": json.dumps(self._metadata, default=str)})

    def _write_summaries(
        self, steps: npt.NDArray[np.int64], walltimes: Sequence[float], values: dict[str, Any]
    ) -> None:
        if self._writer is None:
            return
        writer = self._writer._get_file_writer()  # type: ignore[no-untyped-call]
        labels = list(dict.fromkeys(self._labels)) or [""]
        members = [[i for i, x in enumerate(self._labels) if x == label] or [0] for label in labels]
        shown = {
            "/".join(filter(None, (self.path.stem, name, label))): value[:, items].mean(axis=1)
            for name, value in values.items()
            for label, items in zip(labels, members, strict=True)
        }
        for i, (step, walltime) in enumerate(zip(steps, walltimes, strict=True)):
            scalars = [
                Summary.Value(tag=tag, simple_value=value[i])
                for tag, value in shown.items()
                if np.isfinite(value[i])
            ]
            writer.add_summary(Summary(value=scalars), int(step), walltime)

    def _show_again(self, kept: Sequence[pa.RecordBatch]) -> None:
        """Gives the earlier rows to TensorBoard too, whose files a resumed run starts anew."""
        names = [n for n in kept[0].schema.names if n != "step" and n not in self._index]
        names = [name for name in names if f"{name}_over_null" not in names]
        n_items = max(1, len(self._labels))
        for batch in kept:
            steps = batch["step"].to_numpy()[::n_items]
            values = {name: batch[name].to_numpy().reshape(-1, n_items) for name in names}
            self._write_summaries(steps, [time.time()] * len(steps), values)


class _Table:
    """An Arrow stream on disk, each batch written with a single system call."""

    def __init__(self, path: Path, schema: pa.Schema, kept: Sequence[pa.RecordBatch] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        self._file = draft.open("wb", buffering=0)
        self._staged = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._staged, schema)
        self._schema = schema
        for batch in kept:
            self._writer.write_batch(batch)
        self._write_through()
        os.replace(draft, path)

    def append(self, columns: Mapping[str, Any]) -> None:
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._write_through()

    def close(self) -> None:
        self._file.close()  # A stream needs no end mark.

    def _write_through(self) -> None:
        """Writes what is staged whole, or, when the disk refuses, nothing of it."""
        staged, start = memoryview(self._staged.getvalue()), self._file.tell()
        self._staged.seek(0)
        self._staged.truncate()
        try:
            while staged:
                staged = staged[self._file.write(staged) :]
        except BaseException:  # Ctrl-C too must not leave half a batch behind.
            self._file.truncate(start)
            self._file.seek(start)
            raise


def read_batches(path: str | Path, last_step: int | None = None) -> list[pa.RecordBatch]:
    """Reads the complete batches of a table's file, whether or not the stream was ended.

    Args:
        path: The file.
        last_step: Leave out the rows of later steps.

    Returns:
        The batches, each non-empty.
    """
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except (StopIteration, pa.ArrowInvalid):
                return batches
            if last_step is not None:
                batch = batch.filter(pa.compute.less_equal(batch["step"], last_step))
            if batch.num_rows:
                batches.append(batch)
