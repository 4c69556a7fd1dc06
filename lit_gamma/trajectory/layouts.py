"""How a table lies in its file: what is written, and the same read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lit_gamma.errors import InputError
from lit_gamma.trajectory.table import Table

Columns = Mapping[str, npt.NDArray[np.floating]]


class Measured(NamedTuple):
    """Values with the step and the item that each belongs to.

    Attributes:
        steps: int64, shape (n,).
        items: Positions of the items in the table's index, int64, shape (n,).
        values: Column to array of shape (n,).
    """

    steps: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]
    values: Columns


class Rows:
    """One row per step and item, with the item's index columns; values are float32.

    Args:
        table: The table.

    Raises:
        InputError: An index column mixes types, or holds what Arrow does not know.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._index = {name: self._column(name, items) for name, items in table.index.items()}

    def schema(self, columns: Sequence[str], metadata: Mapping[str, str]) -> pa.Schema:
        """The file's schema; each field says what it means."""
        fields = [pa.field("step", pa.int64(), metadata={"meaning": "optimizer steps taken"})]
        fields += [pa.field(name, column.type) for name, column in self._index.items()]
        fields += [self._field(name, pa.float32()) for name in columns]
        return pa.schema(fields, metadata=metadata)

    def written(self, measured: Measured) -> dict[str, pa.Array]:
        """The columns of a batch of the file."""
        columns = {"step": pa.array(measured.steps)}
        columns |= {name: column.take(measured.items) for name, column in self._index.items()}
        return columns | {n: pa.array(v.astype(np.float32)) for n, v in measured.values.items()}

    def read(self, batch: pa.RecordBatch) -> Measured:
        """What :meth:`written` made a batch of."""
        keys = zip(*(column.to_pylist() for column in self._index.values()), strict=True)
        position = {key: i for i, key in enumerate(keys)}
        rows = zip(*(batch[name].to_pylist() for name in self._index), strict=True)
        items = [position[key] for key in rows] if self._index else [0] * batch.num_rows
        names = [n for n in batch.schema.names if n != "step" and n not in self._index]
        values = {name: batch[name].to_numpy() for name in names}
        return Measured(batch["step"].to_numpy(), np.array(items), values)

    def _column(self, name: str, items: Sequence[Any]) -> pa.Array:
        try:
            return pa.array(items)
        except pa.ArrowException as error:
            raise InputError(
                f"{self._table.name}: items() gives {name} values that are no column of numbers or "
                f"texts: {str(error).partition(chr(10))[0]}"
            ) from error

    def _field(self, name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, metadata={"meaning": self._table.meaning(name)})


class Vectors(Rows):
    """One row per step, for many items that are all measured at every step.

    Each quantity is a column of lists, ``fixed_size_list<float16>``, in the order of the items;
    what the items are is not repeated in each row.
    """

    def schema(self, columns: Sequence[str], metadata: Mapping[str, str]) -> pa.Schema:
        """The file's schema; each field says what it means."""
        steps = super().schema((), metadata).field("step")
        lists = pa.list_(pa.float16(), self._table.n_items)
        fields = [steps, *(self._field(name, lists) for name in columns)]
        return pa.schema(fields, metadata=metadata)

    def written(self, measured: Measured) -> dict[str, pa.Array]:
        """The columns of a batch of the file."""
        n = self._table.n_items
        columns = {"step": pa.array(measured.steps[::n])}
        for name, values in measured.values.items():
            halves = pa.array(values.astype(np.float16))
            columns[name] = pa.FixedSizeListArray.from_arrays(halves, n)
        return columns

    def read(self, batch: pa.RecordBatch) -> Measured:
        """What :meth:`written` made a batch of."""
        n = self._table.n_items
        names = [name for name in batch.schema.names if name != "step"]
        return Measured(
            np.repeat(batch["step"].to_numpy(), n),
            np.tile(np.arange(n), batch.num_rows),
            {name: vectors(batch[name]).ravel() for name in names},
        )


def vectors(column: pa.FixedSizeListArray) -> npt.NDArray[np.float16]:
    """A column of lists as one array, (n_steps, n_items)."""
    values: npt.NDArray[np.float16] = column.flatten().to_numpy()
    return values.reshape(len(column), -1)
