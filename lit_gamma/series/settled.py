"""A record that keeps little in memory: what is measured is finished at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from lit_gamma.recording.record_file import RecordFile
from lit_gamma.recording.run import Run
from lit_gamma.trajectory.layouts import Rows
from lit_gamma.trajectory.recorder import Settle
from lit_gamma.trajectory.table import Table


class SettledFile(RecordFile):
    """A record file that settles at once: the Grams of a large model would fill the memory.

    Args:
        earlier: How far the record in this folder goes; None at its beginning.
    """

    def __init__(self, earlier: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        if earlier is not None:
            self.load_state_dict(earlier)

    @override
    def begin(self, run: Run, name: str) -> Path | None:
        super().begin(run, name)
        return self.path  # The folder may have been moved, and its record with it.

    @override
    def open(
        self, earlier: Path | None, table: Table, layout: type[Rows], run: Run, settle: Settle
    ) -> None:
        self._settle = settle
        super().open(earlier, table, layout, run, lambda values: values)

    @override
    def append(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> None:
        super().append(step, self._settle(values), items)
