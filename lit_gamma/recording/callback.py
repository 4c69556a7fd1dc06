"""What a trajectory callback is: name quantities, say when, and the base class records them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.recording.budget import BudgetedCallback
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.trajectory.arrow import read_batches
from lit_gamma.trajectory.recorder import Recorder
from lit_gamma.trajectory.table import Index
from lit_gamma.trajectory.tensorboard import write_layout

PICTURES = Schedule(per_decade=4)
"""The steps at which callbacks that draw do so by default."""

FLUSH_STEPS = 100
"""Optimizer steps that recorded values wait to be written, at most."""

FLUSH_SECONDS = 10.0
"""Seconds that they wait, at most, and until the end of the step."""

FLUSH_BYTES = 2**26
"""Most bytes that wait, 64 MiB."""


class TrajectoryCallback(BudgetedCallback):
    """Records named quantities at the steps of a schedule.

    The x-axis is the number of optimizer steps taken, ``trainer.global_step``: what is recorded at
    step t belongs to the weights W_t. Gradient accumulation therefore records once per optimizer
    step. All ranks measure, rank 0 writes. A record goes on across a resume without gaps or
    duplicates.

    Subclasses implement :meth:`observe`; for quantities of weight matrices or of training batches,
    see :class:`WeightTrajectory` and :class:`BatchTrajectory`.

    Args:
        schedule: The steps to record; every step by default.
        overhead: What recording may cost, as a share of the time of training without it; None for
            no limit. If the first steps show that the run will cost more, there is one warning.
        pictures: The steps to draw, see :meth:`draw`; none by default.

    Attributes:
        meanings: What each quantity is, with range and unit; stored in the file's schema.
        default_schedule: The schedule if none is given.
        default_pictures: The same for ``pictures``.
        layout: How the table is written: a row per step and item, or see :class:`VectorRecorder`.
        charts: Grouped charts in TensorBoard: title, and the quantities shown as lines. If there
            are any, TensorBoard gets only these quantities; the file always has all.
    """

    # As default values of arguments these would lend their `every` to {per_decade: 5} in a config.
    default_schedule: ClassVar[Schedule] = Schedule(every=1)
    default_pictures: ClassVar[Schedule | None] = None
    meanings: ClassVar[Mapping[str, str]] = {}
    layout: ClassVar[type[Recorder]] = Recorder
    charts: ClassVar[Mapping[str, Sequence[str]]] = {}

    def __init__(
        self,
        schedule: Schedule | None = None,
        overhead: float | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(overhead)
        self.schedule = schedule or self.default_schedule
        self.pictures = pictures or self.default_pictures
        self.recorder: Recorder | None = None
        self._path: Path | None = None
        self._last_step = -1
        self._last_drawn = -1

    @property
    def name(self) -> str:
        """Name of the table and first part of the tags: the class name in snake case."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def state_key(self) -> str:
        """Key of this callback's state in a checkpoint."""
        return f"lit_gamma.{self.name}"

    @property
    def jobs(self) -> dict[str, Schedule]:
        """See :class:`BudgetedCallback`."""
        drawing = {} if self.pictures is None else {"pictures": self.pictures}
        return {"record": self.schedule, **drawing}

    def due(self, step: int) -> bool:
        """Whether something is recorded at a step."""
        return self.schedule.due(step)

    def draws(self, step: int) -> bool:
        """Whether a picture of a step is to be drawn, and is not drawn yet."""
        return self.pictures is not None and step > self._last_drawn and self.pictures.due(step)

    def observe(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """Measures the quantities of the current weights.

        Args:
            trainer: The trainer.
            pl_module: The module, with the weights W_t of t = ``trainer.global_step``.

        Returns:
            For each quantity a tensor of shape (n_items,) on any device; always the same names.
        """
        raise NotImplementedError

    def draw(
        self, trainer: Trainer, pl_module: LightningModule, writer: SummaryWriter | None
    ) -> None:
        """Draws the current weights, at the steps of ``pictures``.

        Args:
            trainer: The trainer.
            pl_module: The module, with the weights W_t of t = ``trainer.global_step``.
            writer: TensorBoard's; None without a TensorBoardLogger and off rank 0.
        """
        raise NotImplementedError

    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Finishes what was measured when it is written, on rank 0, where waiting is allowed.

        Measuring must not wait for the device, an eigen-solver does; override this to do it here.

        Args:
            measured: What was recorded, possibly of other shapes.

        Returns:
            For each quantity a tensor of shape (n_items,).
        """
        return measured

    def items(self, pl_module: LightningModule) -> tuple[Index, Sequence[str]]:
        """Names what the rows of one step are about.

        Args:
            pl_module: The module that is trained.

        Returns:
            The columns that tell the items apart, and the items' labels in TensorBoard. None by
            default: one row per step.
        """
        return {}, []

    def nulls(self, pl_module: LightningModule) -> Mapping[str, npt.NDArray[np.float64]]:
        """Expected values for random matrices: quantity to array of shape (n_items,)."""
        return {}

    def about(self) -> Mapping[str, Any]:
        """What the file's schema is to say besides callback, seed and hyper-parameters."""
        return {}

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records the current weights."""
        self.record(trainer.global_step, self.observe(trainer, pl_module))

    def record(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> None:
        """Appends values of a step to the record.

        Args:
            step: The step they belong to.
            values: For each quantity a tensor of shape (n_items,), or what :meth:`settle` takes.
            items: Positions of the items measured; all by default.
        """
        if self.recorder is not None:
            self.recorder.append(step, values, items)

    def flush(self) -> None:
        """Writes what is pending: the one place that waits for the device."""
        if self.recorder is not None:
            with side_stream(self._device):
                self.recorder.flush()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record, or continues it after a resume, and takes W_0."""
        self.start_bill(pl_module.device)
        log_dir = trainer.log_dir or trainer.default_root_dir
        if trainer.global_step == 0:
            self._last_step = self._last_drawn = -1
        kept = self._earlier_rows()
        self._path = Path(log_dir, "trajectory", f"{self.name}.arrow").absolute()
        if trainer.is_global_zero:
            self.recorder = self._open(trainer, pl_module, kept)
            callbacks = trajectory_callbacks(trainer)
            if callbacks[0] is self:  # TensorBoard keeps one layout per run.
                write_layout(tensorboard_writer(trainer), callbacks, pl_module)
        self.take_if_due(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Records W_t if an optimizer step has just made it."""
        self.take_if_due(trainer, pl_module)
        self.flush_if_due(trainer.global_step)
        self.calibrate(trainer)

    def take_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records and draws the current weights, unless that is done already or not due."""
        step = trainer.global_step
        if step > self._last_step and self.due(step):
            with self.billed("record"), torch.no_grad():
                self.take(trainer, pl_module)
            self._last_step = step
        if self.draws(step):
            with self.billed("pictures"), torch.no_grad():
                self.draw(trainer, pl_module, tensorboard_writer(trainer))
            self._last_drawn = step

    def flush_if_due(self, step: int) -> None:
        """Writes what has waited long enough, or takes too much memory."""
        if self.recorder is None or self.recorder.oldest is None:
            return
        first_step, since = self.recorder.oldest
        if (
            step - first_step >= FLUSH_STEPS
            or time.time() - since >= FLUSH_SECONDS
            or self.recorder.n_bytes >= FLUSH_BYTES
        ):
            with self.billed("write"):
                self.flush()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is pending."""
        with self.billed("write"):
            self.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes what is pending and ends the file."""
        if self.recorder is not None:
            self.flush()
            self.recorder.close()
            self.recorder = None

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Loses nothing when training is interrupted."""
        self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Lightning hook: where the record is and how far it goes; writes what is pending."""
        self.flush()
        steps = {"last_step": self._last_step, "last_drawn": self._last_drawn}
        return {"path": str(self._path), **steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning hook: see :meth:`state_dict`."""
        self._path = Path(state_dict["path"])
        self._last_step, self._last_drawn = state_dict["last_step"], state_dict["last_drawn"]

    def _open(self, trainer: Trainer, pl_module: LightningModule, kept: list[Any]) -> Recorder:
        assert self._path is not None
        index, labels = self.items(pl_module)
        metadata = {
            "callback": type(self).__qualname__,
            "seed": os.environ.get("PL_GLOBAL_SEED"),
            "hyperparameters": {
                k: v for k, v in pl_module.hparams.items() if not k.startswith("_")
            },
            **self.about(),
        }
        return self.layout(
            self._path, index, labels, self.nulls(pl_module), self.meanings, metadata,
            tensorboard_writer(trainer), kept, self.settle,
            {quantity for quantities in self.charts.values() for quantity in quantities},
        )  # fmt: skip

    def _earlier_rows(self) -> list[Any]:
        """Rows up to the checkpoint that training goes on from."""
        if self._last_step < 0 or self._path is None:
            return []
        if not self._path.is_file():
            rank_zero_warn(
                f"{self.name}: the record up to step {self._last_step} is no longer at "
                f"{self._path}; the new record starts after it"
            )
            return []
        return read_batches(self._path, self._last_step)


def trajectory_callbacks(trainer: Trainer) -> list[TrajectoryCallback]:
    """The trainer's trajectory callbacks, in its order."""
    return [c for c in trainer.callbacks if isinstance(c, TrajectoryCallback)]  # type: ignore[attr-defined]


def tensorboard_writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's TensorBoard writer; None without a TensorBoardLogger or off rank 0."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            writer: SummaryWriter = logger.experiment
            return writer
    return None
