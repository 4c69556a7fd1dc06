"""The record of one callback over a run: begun or continued, written, ended."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gamma.errors import InputError
from lit_gamma.recording.run import Run
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.trajectory.arrow import read_batches
from lit_gamma.trajectory.layouts import Rows
from lit_gamma.trajectory.recorder import Recorder, Settle, earlier_record
from lit_gamma.trajectory.table import Table


class RecordFile:
    """Where a callback's record is, and how far it goes; a checkpoint holds both.

    Attributes:
        path: The file; None before the first run.
        last_step: The last step that was recorded, -1 if none was.
        last_drawn: The last step that was drawn.
        since: The step up to which schedules were looked at.
        began: Steps taken when this part of the run began.
        recorder: What collects and writes; None off rank 0 and outside of training.
        holes: First and last steps that are missing, as the file could not be written.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self.last_step = -1
        self.last_drawn = -1
        self.since = -1
        self.began = 0
        self._last_appended, self._at_last = -1, 0
        self.recorder: Recorder | None = None
        self._device = torch.device("cpu")
        self.holes: list[tuple[int, int]] = []

    def begin(self, run: Run, name: str) -> Path | None:
        """Takes its place in a run's folder; returns where the earlier record is, if there is one.

        Raises:
            InputError: The name cannot be that of a file there.
        """
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"a callback's name is that of its file in trajectory/, got {name!r}")
        if run.step == 0:
            self.last_step = self.last_drawn = self._last_appended = -1
        self.since, self.began = run.step - 1, run.step
        self._device = run.device
        was, self.path = self.path, _in(run.folder, f"{name}.arrow")
        if was is None:
            return None
        places = [self.path, was]
        if run.resumed_from is not None:
            places.append(_in(run.resumed_from.parent.parent, was.name))
        return next((place for place in places if place.is_file()), was)

    def refuse_another(self, folder: Path) -> None:
        """Refuses a folder that holds a record of another run.

        Raises:
            InputError: It does: that record would be lost.
        """
        there = self._file_in(folder)
        if self.path is not None and there is not None and not self._is(there):
            raise InputError(
                f"{folder} holds another record than that of the state, which is at "
                f"{self.path.parents[1]}: name that folder or a new one"
            )

    def open(
        self, earlier: Path | None, table: Table, layout: type[Rows], run: Run, settle: Settle
    ) -> None:
        """Opens the record on the rank that writes, and continues an earlier one."""
        assert self.path is not None
        kept = earlier_record(earlier, self.last_step, self._at_last)
        self.recorder = Recorder(self.path, table, layout, run.views, kept, settle)
        self.holes = self.recorder.holes

    def continues(self, folder: Path) -> bool:
        """Whether the record, of a checkpoint or an earlier fit, is in a run's folder."""
        return self.path is not None and self.path == _in(folder, self.path.name)

    def came_along(self, folder: Path) -> bool:
        """Whether the record is in the folder of its checkpoint, which was moved or copied."""
        there = self._file_in(folder)
        if self.path is None or there is None:
            return False
        before = self.path.parents[1].name
        if re.fullmatch(r"run-\d+", before) and before != folder.name:
            return False  # It shared a folder, see Run.claim: what is there is another's.
        return self._is(there)

    def _file_in(self, folder: Path) -> Path | None:
        """The file of this name in a run's folder, if there is one."""
        there = None if self.path is None else _in(folder, self.path.name)
        return there if there is not None and there.is_file() else None

    def _is(self, there: Path) -> bool:
        """Whether a file is the record, or a copy of it up to the last step that was recorded."""
        assert self.path is not None
        if not self.path.is_file() or there.samefile(self.path):
            return True
        return _rows(there, self.last_step) == _rows(self.path, self.last_step)

    def came(self, due: Callable[[int], bool], step: int) -> bool:
        """Whether a step is due, or one that was jumped over since the last time.

        With several optimizers one batch may take several steps.
        """
        return any(due(passed) for passed in range(self.since + 1, step + 1))

    def append(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> None:
        """Appends values of a step to the record.

        Args:
            step: The step they belong to.
            values: For each quantity a tensor of shape (n_items,), or what ``settle`` takes.
            items: Positions of the items measured; all by default.
        """
        if self.recorder is not None:
            n = self.recorder.append(step, values, items)
            self._at_last = n + (self._at_last if step == self._last_appended else 0)
            self._last_appended = step

    def ripe(self, step: int) -> bool:
        """Whether something has waited long enough to be written."""
        return self.recorder is not None and self.recorder.ripe(step)

    def flush(self) -> None:
        """Writes what is pending: the one place that waits for the device."""
        if self.recorder is not None:
            with side_stream(self._device):
                self.recorder.flush()

    def close(self) -> None:
        """Ends the file."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None

    def state_dict(self) -> dict[str, Any]:
        """The place and the steps."""
        return {
            "path": str(self.path),
            "last_step": self.last_step,
            "last_drawn": self.last_drawn,
            "items_at_last": self._at_last,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` returned, before the run begins."""
        self.path = Path(state_dict["path"])
        self.last_step, self.last_drawn = state_dict["last_step"], state_dict["last_drawn"]
        # Checkpoints of before do not say it, and runs of then recorded nothing more at their end.
        self._last_appended = self.last_step
        self._at_last = state_dict.get("items_at_last", sys.maxsize)


def _in(folder: Path, name: str) -> Path:
    return folder.absolute() / "trajectory" / name


def _rows(path: Path, end: int) -> str:
    """The rows before a step, as text, in which a NaN equals a NaN."""
    batches = read_batches(path, lambda steps: steps < end)
    return str([row for batch in batches for row in batch.to_pylist()])
