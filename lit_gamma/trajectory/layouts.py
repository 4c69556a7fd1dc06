"""A table with one row per step: the values of all its items as a vector in half precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lit_gamma.trajectory.arrow import ArrowStream
from lit_gamma.trajectory.recorder import Recorder


class VectorRecorder(Recorder):
    """A :class:`Recorder` for many items that are all measured at every step.

    Each quantity is a column of lists, ``fixed_size_list<float16>``, in the order of the items;
    what the items are is not repeated in each row. TensorBoard shows the mean of each label.
    """

    def _write_rows(
        self, steps: npt.NDArray[np.int64], items: npt.NDArray[np.int64], values: dict[str, Any]
    ) -> None:
        columns: dict[str, Any] = {"step": steps[:: self._n_items]}
        for name, value in values.items():
            halves = pa.array(value.astype(np.float16))
            columns[name] = pa.FixedSizeListArray.from_arrays(halves, self._n_items)
        if self._table is None:
            self._table = ArrowStream(self.path, self._schema(list(values)))
        self._table.append(columns)

    def _schema(self, quantities: Sequence[str]) -> pa.Schema:
        schema = super()._schema(quantities)
        lists = pa.list_(pa.float16(), self._n_items)
        fields = [schema.field("step"), *(schema.field(q).with_type(lists) for q in quantities)]
        return pa.schema(fields, metadata=schema.metadata)

    def _show_again(self, kept: Sequence[pa.RecordBatch]) -> None:
        super()._show_again([self._unrolled(batch) for batch in kept])

    def _unrolled(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with a row per step and item, as :class:`Recorder` writes it."""
        columns = {"step": np.repeat(batch["step"].to_numpy(), self._n_items)}
        columns |= {name: _tiled(items, batch.num_rows) for name, items in self._index.items()}
        lists = {n: batch[n] for n in batch.schema.names if n != "step"}
        columns |= {name: column.flatten() for name, column in lists.items()}
        return pa.record_batch(columns)


def _tiled(items: pa.Array, times: int) -> pa.Array:
    return pa.concat_arrays([items] * times)
