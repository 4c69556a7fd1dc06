"""What a table of the record is: its quantities, and what its rows are about."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from lit_gamma.errors import InputError

Index = Mapping[str, Sequence[Any]]
"""The columns that say which item a row is about, each with one value per item."""


@dataclass(frozen=True)
class Quantity:
    """A quantity that a callback records: its name, and what a reader has to know of it.

    Attributes:
        name: Its column.
        meaning: What it is.
        unit: Its unit; empty if it has none.
        range: The values that it can take.
        note: What is worth saying besides, such as its value at initialization.
        null: What it reads on average on an i.i.d. Gaussian matrix, a function of n_neurons and
            d_in; the record then has the column ``<name>_over_null`` too.
        null_formula: The same in words or as a formula in n and d, for the documentation.
        chart: Title of the chart in TensorBoard that shows it, over its null if it has one.
        joined: What TensorBoard shows as one line for all items, their mean or sum; without it
            there is a line for each label.
        group: First part of its tags, if it is not its table's: it stands there in place of that
            table's own quantity of this name.
    """

    name: str
    meaning: str = ""
    unit: str = ""
    range: str = ""
    note: str = ""
    null: Callable[[int, int], float] | None = None
    null_formula: str = ""
    chart: str | None = None
    joined: Literal["mean", "sum"] | None = None
    group: str = ""

    def __str__(self) -> str:
        meaning = ", ".join(filter(None, (self.meaning, self.unit)))
        return "; ".join(filter(None, (meaning, self.range, self.note)))


@dataclass(frozen=True)
class Table:
    """A table of the record: one row per step and item, one column per quantity.

    Attributes:
        name: Its name, which is the file's.
        index: Columns that say which item a row is about; none if a step has a single row.
        labels: Name of each item in TensorBoard; empty for a single, nameless item.
        quantities: What is known of the columns. If any has a chart, TensorBoard gets those that
            have one, else all.
        nulls: Expected value of a quantity, one per item: such a quantity gets a second column,
            ``<quantity>_over_null``, which is what TensorBoard shows.
        reference: What the nulls are the expected values for, in words.
        metadata: What the run is, for the schema.
        group: First part of its tags; its name by default.
        all_tags: Whether TensorBoard gets a line for every item and column. By default items of
            a role are averaged.
        elsewhere: Names of the quantities that TensorBoard gets from another table.

    Raises:
        InputError: The callback contradicts itself, in :meth:`items` or :meth:`nulls`.
    """

    name: str
    index: Index = field(default_factory=dict)
    labels: Sequence[str] = ()
    quantities: Sequence[Quantity] = ()
    nulls: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    reference: str = "its expectation for a Gaussian matrix of this shape"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    all_tags: bool = False
    elsewhere: Collection[str] = ()

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise InputError(f"{self.name}: {fault}")

    def _faults(self) -> Iterator[str]:
        """What would be found out when rows are written, long after they were measured."""
        lengths = {name: len(values) for name, values in self.index.items()}
        if len({*lengths.values()}) > 1:
            yield f"items() gives columns of different lengths, {lengths}"
        if "step" in lengths:
            yield "items() gives a column step, which every table has already; rename it"
        if self.index and len({*zip(*self.index.values(), strict=True)}) < self.n_items:
            yield f"items() gives rows that {', '.join(lengths)} do not tell apart"
        if self.labels and len(self.labels) != self.n_items:
            yield f"items() gives {len(self.labels)} labels for {self.n_items} items"
        for name, null in self.nulls.items():
            if np.shape(null) != (self.n_items,):
                yield (
                    f"nulls() gives {name} the shape {np.shape(null)}; it must be "
                    f"({self.n_items},), a value for each item"
                )

    @property
    def n_items(self) -> int:
        """Rows of a step at which everything is measured."""
        return len(next(iter(self.index.values()))) if self.index else 1

    def meaning(self, column: str) -> str:
        """What a column of the file is; empty if nobody said it."""
        said = {quantity.name: str(quantity) for quantity in self.quantities}
        over_null = f"the quantity / {self.reference}" if column.endswith("_over_null") else ""
        return said.get(column, over_null)

    @cached_property
    def charts(self) -> dict[str, list[str]]:
        """Title of each chart to the columns that it shows."""
        charts: dict[str, list[str]] = {}
        for quantity in self.quantities:
            if quantity.chart is not None and quantity.name not in self.elsewhere:
                over_null = quantity.name in self.nulls
                column = f"{quantity.name}_over_null" if over_null else quantity.name
                charts.setdefault(quantity.chart, []).append(column)
        return charts

    def shows(self, column: str) -> bool:
        """Whether TensorBoard gets a column."""
        if _quantity_of(column) in self.elsewhere:
            return False
        if self.all_tags or all(quantity.chart is None for quantity in self.quantities):
            return True
        return any(column in columns for columns in self.charts.values())

    def joined(self, column: str) -> Literal["mean", "sum"] | None:
        """How all items are joined to one line of TensorBoard; None for a line for each label."""
        if self.all_tags:
            return None
        said = {quantity.name: quantity.joined for quantity in self.quantities}
        return said.get(_quantity_of(column))

    def tags(self, column: str) -> list[str]:
        """The tag that each item has in TensorBoard; items that share one are shown as a line."""
        by = self.labels if self.all_tags else self.index.get("role", self.labels)
        labels = [""] * self.n_items if self.joined(column) or not by else by
        own = {quantity.name: quantity.group for quantity in self.quantities}
        group = own.get(_quantity_of(column)) or self.group or self.name
        return ["/".join(filter(None, (group, column, label))) for label in labels]


def _quantity_of(column: str) -> str:
    return column.removesuffix("_over_null")


@cache
def snake_case(name: str) -> str:
    """A class's name as its table's: ``WeightNorms`` is ``weight_norms``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
