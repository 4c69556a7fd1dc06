"""Where recorded values go: an Arrow stream per table, and TensorBoard.

A table has one row per (step, item) and one column per quantity. Its file is an Arrow IPC stream,
``datasets.Dataset.from_file(path).to_pandas()``; every batch is written whole, so a killed process
leaves a readable file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.trajectory.arrow import ArrowStream
from lit_gamma.trajectory.table import Index
from lit_gamma.trajectory.tensorboard import Scalars


class Recorder:
    """Collects the values of one table and writes them in batches.

    Values stay on their device until :meth:`flush`, which moves all of them at once. TensorBoard
    gets one summary for every step up to 100, and then for each that is 1 % later, some 1,000 of a
    million steps: it draws no more points of a tag. Items that share a label are averaged there,
    each with its newest value.

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
        settle: Turns what was appended into quantities, at the flush.
        charted: The quantities that TensorBoard gets, whose files take 8 µs of Python per value;
            all by default.

    Attributes:
        n_bytes: Size of the values that wait to be written.
    """

    def __init__(
        self,
        path: Path,
        index: Index,
        labels: Sequence[str] = (),
        nulls: Mapping[str, npt.NDArray[np.float64]] = {},
        meanings: Mapping[str, str] = {},
        metadata: Mapping[str, Any] = {},
        writer: SummaryWriter | None = None,
        kept: Sequence[pa.RecordBatch] = (),
        settle: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda values: values,
        charted: Collection[str] = (),
    ) -> None:
        self.path = path
        self._index = {name: pa.array(items) for name, items in index.items()}
        self._n_items = len(next(iter(index.values()))) if index else 1
        self._nulls = nulls
        self._meanings = meanings
        self._metadata = metadata
        self._shown = None if writer is None else Scalars(writer, path.stem, labels, charted)
        self._settle = settle
        self._pending: list[_Pending] = []
        self.n_bytes = 0
        self._table: ArrowStream | None = None
        self._warned = False
        if kept:
            self._continue(kept)

    def append(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> None:
        """Takes values of one step; a step may be given in parts.

        Args:
            step: Optimizer steps taken before.
            values: For each quantity a tensor of shape (n_items,), the same names every time; or
                what ``settle`` turns into that.
            items: Positions of the items measured; all by default.
        """
        positions = np.arange(self._n_items) if items is None else np.asarray(items)
        detached = {name: value.detach() for name, value in values.items()}
        self._pending.append(_Pending(step, time.time(), positions, detached))
        self.n_bytes += sum(value.nbytes for value in detached.values())

    @property
    def oldest(self) -> tuple[int, float] | None:
        """Step and time (``time.time()``) of the oldest values that wait to be written."""
        return (self._pending[0].step, self._pending[0].walltime) if self._pending else None

    def flush(self) -> None:
        """Writes what is pending: one transfer from the device, one batch."""
        if not self._pending:
            return
        alike = [list(group) for _, group in groupby(self._pending, key=_Pending.shapes)]
        settled = [self._settle(_joined(group)) for group in alike]
        quantities = list(settled[0])
        stacked = [torch.stack([v[q].float() for q in quantities], dim=-1) for v in settled]
        block = torch.cat(stacked).cpu().numpy()
        items = np.concatenate([pending.items for pending in self._pending])
        steps = np.concatenate([np.full(len(p.items), p.step) for p in self._pending])
        walltimes = {pending.step: pending.walltime for pending in self._pending}
        order = np.lexsort((items, steps))
        steps, items, block = steps[order], items[order], block[order]
        values = {name: block[:, i] for i, name in enumerate(quantities)}
        over_null = {
            f"{name}_over_null": value / self._nulls[name][items]
            for name, value in values.items()
            if name in self._nulls
        }
        try:
            self._write_rows(steps, items, {**values, **over_null})
        except OSError as error:
            self._warn_of_hole(steps, error)
        self._pending.clear()
        self.n_bytes = 0
        if self._shown is not None:
            plain = {name: value for name, value in values.items() if name not in self._nulls}
            self._shown.write(steps, items, walltimes, {**over_null, **plain})

    def close(self) -> None:
        """Flushes and ends the file."""
        self.flush()
        if self._table is not None:
            self._table.close()

    def _write_rows(
        self, steps: npt.NDArray[np.int64], items: npt.NDArray[np.int64], values: dict[str, Any]
    ) -> None:
        columns: dict[str, Any] = {"step": steps}
        columns |= {name: column.take(pa.array(items)) for name, column in self._index.items()}
        columns |= {name: value.astype(np.float32) for name, value in values.items()}
        if self._table is None:
            self._table = ArrowStream(self.path, self._schema(list(values)))
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
        fields += [pa.field(name, column.type) for name, column in self._index.items()]
        for name in quantities:
            meaning = self._meanings.get(name, "")
            if name.endswith("_over_null") and not meaning:
                meaning = "the quantity / its expectation for a Gaussian matrix of this shape"
            fields.append(pa.field(name, pa.float32(), metadata={"meaning": meaning}))
        return pa.schema(fields, metadata={"lit_gamma": json.dumps(self._metadata, default=str)})

    def _continue(self, kept: Sequence[pa.RecordBatch]) -> None:
        try:
            self._table = ArrowStream(self.path, kept[0].schema, kept)
        except OSError as error:
            self._warn_of_hole(kept[0]["step"].to_numpy(), error)
        self._show_again(kept)

    def _show_again(self, kept: Sequence[pa.RecordBatch]) -> None:
        """Gives the earlier rows to TensorBoard too, whose files a resumed run starts anew."""
        if self._shown is None:
            return
        names = [n for n in kept[0].schema.names if n != "step" and n not in self._index]
        names = [name for name in names if f"{name}_over_null" not in names]
        keys = list(zip(*(column.to_pylist() for column in self._index.values()), strict=True))
        position = {key: i for i, key in enumerate(keys)}
        for batch in kept:
            rows = zip(*(batch[name].to_pylist() for name in self._index), strict=True)
            items = [position[key] for key in rows] if self._index else [0] * batch.num_rows
            steps = batch["step"].to_numpy()
            walltimes = dict.fromkeys(steps.tolist(), time.time())
            values = {name: batch[name].to_numpy() for name in names}
            self._shown.write(steps, np.array(items), walltimes, values)


@dataclass(frozen=True)
class _Pending:
    step: int
    walltime: float
    items: npt.NDArray[np.int64]
    values: Mapping[str, Tensor]

    def shapes(self) -> list[torch.Size]:
        """Of one item's values; items of the same shapes are settled together."""
        return [value.shape[1:] for value in self.values.values()]


def _joined(pending: Sequence[_Pending]) -> dict[str, Tensor]:
    return {name: torch.cat([p.values[name] for p in pending]) for name in pending[0].values}
