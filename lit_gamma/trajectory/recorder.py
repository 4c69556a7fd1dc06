"""Where recorded values go: an Arrow stream per table, and what loggers show of it.

A table's file is an Arrow IPC stream, ``datasets.Dataset.from_file(path).to_pandas()``; every batch
is written whole, so a killed process leaves a readable file.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lit_gamma.errors import InputError
from lit_gamma.trajectory.arrow import ArrowStream, read_batches, up_to
from lit_gamma.trajectory.jsonable import jsonable
from lit_gamma.trajectory.layouts import Measured, Rows
from lit_gamma.trajectory.lines import Lines, View
from lit_gamma.trajectory.table import Table

FLUSH_STEPS = 100
"""Optimizer steps that recorded values wait to be written, at most."""

FLUSH_SECONDS = 10.0
"""Seconds that they wait, at most, and until the end of the step."""

FLUSH_BYTES = 2**26
"""Most bytes that wait, 64 MiB."""

Settle = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""Turns what was appended into quantities, where waiting for the device is allowed."""


class Recorder:
    """Collects the values of one table and writes them in batches.

    Values stay on their device until :meth:`flush`, which moves all of them at once.

    Args:
        path: The table's file, ``<run_dir>/trajectory/<name>.arrow``.
        table: What is recorded.
        layout: How the table lies in the file.
        views: Who draws its lines.
        kept: Batches of an earlier record to continue.
        settle: See :data:`Settle`.

    Attributes:
        holes: First and last steps that are missing, as the file could not be written.
    """

    def __init__(
        self,
        path: Path,
        table: Table,
        layout: type[Rows] = Rows,
        views: Sequence[View] = (),
        kept: Sequence[pa.RecordBatch] = (),
        settle: Settle = lambda values: values,
    ) -> None:
        self.path = path
        self.table = table
        self._layout = layout(table)
        self._settle = settle
        self._lines = Lines(table, views) if views else None
        self._pending: list[_Pending] = []
        self._n_bytes = 0
        self._names: list[str] = []
        self._stream: ArrowStream | None = None
        self.holes: list[tuple[int, int]] = []
        if kept:
            self._continue(kept)

    def append(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> int:
        """Takes values of one step; a step may be given in parts. Returns the number of items.

        Args:
            step: Optimizer steps taken before.
            values: For each quantity a tensor of shape (n_items,), the same names every time; or
                what ``settle`` turns into that.
            items: Positions of the items measured; all by default.
        """
        positions = np.arange(self.table.n_items) if items is None else np.asarray(items)
        self._check(values, len(positions))
        detached = {name: value.detach() for name, value in values.items()}
        self._pending.append(_Pending(step, time.time(), positions, detached))
        self._n_bytes += sum(value.nbytes for value in detached.values())
        return len(positions)

    def ripe(self, step: int) -> bool:
        """Whether something has waited long enough, or takes too much memory, at a step."""
        if not self._pending:
            return False
        oldest = self._pending[0]
        return (
            step - oldest.step >= FLUSH_STEPS
            or time.time() - oldest.walltime >= FLUSH_SECONDS
            or self._n_bytes >= FLUSH_BYTES
        )

    def flush(self) -> None:
        """Writes what is pending: one transfer from the device, one batch."""
        if not self._pending:
            return
        try:
            measured = self._measured()
        except BaseException:
            self._forget()  # What cannot be settled now will not be settled later.
            raise
        walltimes = {pending.step: pending.walltime for pending in self._pending}
        self._forget()
        over_null = {
            f"{name}_over_null": measured.values[name] / null[measured.items]
            for name, null in self.table.nulls.items()
            if name in measured.values
        }
        measured = measured._replace(values={**measured.values, **over_null})
        try:
            self._write(measured)
        except OSError as error:
            self._note_hole(measured.steps, error)
        self._show(measured, walltimes)

    def close(self) -> None:
        """Flushes and ends the file."""
        self.flush()
        if self._stream is not None:
            self._stream.close()

    def _check(self, values: Mapping[str, Tensor], n_items: int) -> None:
        """Refuses what would end up in another item's row."""
        if not isinstance(values, Mapping) or not values:
            raise InputError(
                f"{self.table.name}: observe() gave {values!r}; it must be a mapping of quantities "
                "to tensors, the same ones every time"
            )
        for name, value in values.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != n_items:
                raise InputError(
                    f"{self.table.name}: {name} is {shape}; it must be a tensor with one value for "
                    f"each of the {n_items} items measured"
                )

    def _check_names(self, settled: Sequence[Mapping[str, Tensor]]) -> list[str]:
        """The quantities' names; refuses what would end up in another column, or in none."""
        names = self._names or list(settled[0])
        for quantities in settled:
            if quantities.keys() != set(names):
                raise InputError(
                    f"{self.table.name}: the quantities are {', '.join(quantities)}, but were "
                    f"{', '.join(names)} before; they must be the same at every step"
                )
            for name, value in quantities.items():
                if value.ndim != 1:
                    raise InputError(
                        f"{self.table.name}: {name} has {tuple(value.shape[1:])} values for each "
                        "item; it must have one, or be a quantity for each"
                    )
        if taken := {"step", *self.table.index}.intersection(names):
            raise InputError(
                f"{self.table.name}: a quantity is called {taken.pop()}, as a column of the index "
                "is; rename it"
            )
        self._names = names
        return names

    def _measured(self) -> Measured:
        """What is pending, settled, on the host, sorted by step and item."""
        alike = [list(group) for _, group in groupby(self._pending, key=_Pending.shapes)]
        settled = [self._settle(_joined(group)) for group in alike]
        quantities = self._check_names(settled)
        stacked = [torch.stack([v[q].float() for q in quantities], dim=-1) for v in settled]
        block = torch.cat(stacked).cpu().numpy()
        items = np.concatenate([pending.items for pending in self._pending])
        steps = np.concatenate([np.full(len(p.items), p.step) for p in self._pending])
        order = np.lexsort((items, steps))
        block = block[order]
        values = {name: block[:, i] for i, name in enumerate(quantities)}
        return Measured(steps[order], items[order], values)

    def _forget(self) -> None:
        self._pending.clear()
        self._n_bytes = 0

    def _write(self, measured: Measured) -> None:
        if self._stream is None:
            metadata = {"lit_gamma": json.dumps(jsonable(self.table.metadata))}
            schema = self._layout.schema(list(measured.values), metadata)
            self._stream = ArrowStream(self.path, schema)
        try:
            self._stream.append(self._layout.written(measured))
        except FileNotFoundError:
            self._stream = None  # A new file is made at the next flush.
            raise

    def _note_hole(self, steps: npt.NDArray[np.int64], error: OSError) -> None:
        if not self.holes:
            # The same words for every table: Python shows them once.
            warnings.warn(
                f"{self.path.parent} cannot be written ({error.strerror}); training goes on, and "
                "its record has holes, which the summary names, until it can be written again",
                stacklevel=2,
            )
        self.holes.append((int(steps[0]), int(steps[-1])))

    def _continue(self, kept: Sequence[pa.RecordBatch]) -> None:
        """Goes on with earlier batches, in a file and in TensorBoard's, begun anew."""
        try:
            self._stream = ArrowStream(self.path, kept[0].schema, kept)
        except OSError as error:
            self._note_hole(kept[0]["step"].to_numpy(), error)
        if self._lines is not None:
            for measured in map(self._layout.read, kept):
                now = dict.fromkeys(measured.steps.tolist(), time.time())
                self._show(measured, now, again=True)

    def _show(
        self, measured: Measured, walltimes: Mapping[int, float], again: bool = False
    ) -> None:
        """Shows rows in the loggers, which must not end training."""
        if self._lines is None:
            return
        try:
            self._lines.show(measured, walltimes, again)
        except Exception as error:
            warnings.warn(
                f"{self.table.name} is shown in no logger any more ({type(error).__name__}: "
                f"{error}); training goes on, and its file has it",
                stacklevel=2,
            )
            self._lines = None


def earlier_record(path: Path | None, last_step: int, at_last: int) -> list[pa.RecordBatch]:
    """Reads the rows up to the checkpoint that training goes on from.

    Args:
        path: The file of the earlier record; None if there was none.
        last_step: The step it reaches; below 0 if nothing was recorded.
        at_last: Rows of that step then; where training ended with it, there are more.

    Returns:
        The batches; none, and a warning, if the file is gone.
    """
    if path is None or last_step < 0:
        return []
    if path.is_file():
        return _without_end(read_batches(path, up_to(last_step)), last_step, at_last)
    warnings.warn(
        f"{path.stem}: the record up to step {last_step} is no longer at {path}; "
        "the new record starts after it",
        stacklevel=2,
    )
    return []


def _without_end(
    batches: Sequence[pa.RecordBatch], last_step: int, at_last: int
) -> list[pa.RecordBatch]:
    """The batches, of the last step with the first rows alone."""
    kept = []
    for batch in batches:
        is_last = batch["step"].to_numpy() == last_step
        keep = ~is_last | (np.cumsum(is_last) <= at_last)
        at_last -= int((is_last & keep).sum())
        kept.append(batch.filter(pa.array(keep)))
    return [batch for batch in kept if batch.num_rows]


@dataclass(frozen=True)
class _Pending:
    step: int
    walltime: float
    items: npt.NDArray[np.int64]
    values: Mapping[str, Tensor]

    def shapes(self) -> list[tuple[str, torch.Size]]:
        """Names and shapes of one item's values; items with the same ones are settled together."""
        return [(name, value.shape[1:]) for name, value in self.values.items()]


def _joined(pending: Sequence[_Pending]) -> dict[str, Any]:
    return {name: torch.cat([p.values[name] for p in pending]) for name in pending[0].values}
