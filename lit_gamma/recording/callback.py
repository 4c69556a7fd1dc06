"""What a trajectory callback is: name quantities, say when, and the base class records them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma.recording.bill import Bill
from lit_gamma.recording.budget import Share, Turns
from lit_gamma.recording.lightning_run import run_of
from lit_gamma.recording.record_file import RecordFile
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.layouts import Rows
from lit_gamma.trajectory.table import Index, Quantity, Table, snake_case


class TrajectoryCallback(Callback):
    """Records named quantities at the steps of a schedule.

    The x-axis is the number of optimizer steps taken: what is recorded at step t belongs to the
    weights W_t. Gradient accumulation therefore records once per optimizer step. All ranks measure,
    rank 0 writes. A record goes on across a resume without gaps or duplicates.

    Subclasses implement :meth:`observe`; or :class:`WeightTrajectory` or :class:`BatchTrajectory`.
    Whoever trains calls :meth:`start`, for every batch :meth:`before`, :meth:`collect` and
    :meth:`advance`, then :meth:`finish`: the hooks below, ``lit_gamma.record``, ``lit_gamma.hf``.

    Args:
        schedule: The steps to record; every step by default.
        pictures: The steps to draw, see :meth:`draw`; none by default.

    Attributes:
        quantities: What is recorded, and what is worth knowing of it.
        default_schedule: The schedule if none is given.
        default_pictures: The same for ``pictures``.
        layout: How the table lies in its file.
        reference: What the nulls are the expected values for, in words.
        needs_batches: Whether it has to be shown the training batches.
        section: Number of its tags' place in TensorBoard; empty for none.
        expected_seconds: Job to what it takes once, where the first steps do not show it.
        run: The training that is recorded, from its start on.
        file: Where the record is, and how far it goes.
        bill: What it took.
        share: What the run's budget leaves to it: all, until that is known.
    """

    # As default values of arguments these would lend their `every` to {per_decade: 5} in a config.
    default_schedule: ClassVar[Schedule] = Schedule(every=1)
    default_pictures: ClassVar[Schedule | None] = None
    quantities: ClassVar[Sequence[Quantity]] = ()
    layout: ClassVar[type[Rows]] = Rows
    reference: ClassVar[str] = Table.reference
    needs_batches: ClassVar[bool] = False
    section: ClassVar[str] = ""
    expected_seconds: ClassVar[Mapping[str, float]] = {}
    run: Run

    def __init__(self, schedule: Schedule | None = None, pictures: Schedule | None = None) -> None:
        self.schedule = schedule or self.default_schedule
        self.pictures = pictures or self.default_pictures
        self.bill = Bill()
        self.share = Share()
        self.file = RecordFile()

    @property
    def name(self) -> str:
        """Name of the table, the class name in snake case."""
        return snake_case(type(self).__name__)

    @property
    def group(self) -> str:
        """First part of its tags in TensorBoard, which sorts them by name."""
        return "_".join(filter(None, (self.section, self.name)))

    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        """Measures the quantities of the current weights.

        Args:
            trainer: Lightning's Trainer, or what else trains; None in a loop of one's own.
            pl_module: The module, with the weights W_t of t = ``self.run.step``.

        Returns:
            For each quantity a tensor of shape (n_items,) on any device; always the same names.
        """
        raise NotImplementedError

    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        """Draws the current weights, at the steps of ``pictures``; see :meth:`observe`.

        The writer is TensorBoard's, None without one and off rank 0; ``run.show`` shows a picture
        in all loggers that take some, if ``run.pictured``.
        """
        raise NotImplementedError

    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Finishes what was measured when it is written, on rank 0.

        Measuring must not wait for the device; what does, as an eigen-solver, is done here.

        Args:
            measured: What was recorded, possibly of other shapes; returned as by :meth:`observe`.
        """
        return measured

    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        """Columns that tell the rows of one step apart, and the rows' labels in TensorBoard."""
        return {}, []

    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        """Expected values for random matrices: quantity to array of shape (n_items,)."""
        return {}

    def about(self) -> Mapping[str, Any]:
        """What the file's schema is to say besides callback, seed and hyper-parameters."""
        return {}

    def in_words(self) -> str | None:
        """What its record says at the end, one sentence for the summary; None by default."""
        return None

    def due(self, step: int) -> bool:
        """Whether something is recorded at a step."""
        return self._due("record", step)

    def draws(self, step: int) -> bool:
        """Whether a picture of a step is to be drawn, and is not drawn yet."""
        undrawn = step > self.file.last_drawn
        return undrawn and self.file.came(partial(self._due, "pictures"), step)

    def take(self) -> None:
        """Records the current weights."""
        self.file.append(self.run.step, self.observe(self.run.trainer, self.run.module))

    def take_rest(self) -> None:
        """Records of the current weights what is not recorded yet."""
        if self.run.step > self.file.last_step:
            self.take()

    def turns(self) -> Turns | None:
        """What the rest of the budget is divided by; None if nothing is measured in turn."""
        return None

    @property
    def schedules(self) -> dict[str, Schedule]:
        """The steps of each of its jobs."""
        return {"record": self.schedule} | ({"pictures": self.pictures} if self.pictures else {})

    def _due(self, job: str, step: int) -> bool:
        schedule = self.schedules.get(job)
        return schedule is not None and self.share.due(job, schedule, step)

    def start(self, run: Run) -> None:
        """Opens the record of a run, or continues it after a resume, and takes W_t."""
        self.bill.start(run.device)
        earlier = self.file.begin(run, self.name)
        if run.writes:
            self.file.open(earlier, self.table(), self.layout, run, self.settle)
            if run.callbacks[0] is self:  # One layout per run.
                run.lay_out()
        self.measure_if_due()

    def before(self, batch: Any) -> None:
        """A batch is about to be trained on: frees what callbacks shared."""
        self.run.weights.release()

    def collect(self, outputs: Any, batch: Any) -> None:
        """A batch was run, a micro-batch under accumulation; ``training_step`` returned outputs."""

    def advance(self) -> None:
        """The run may have come to a new step: records W_t, writes what has waited long enough."""
        self.measure_if_due()
        if self.file.ripe(self.run.step):
            self.write()
        if self.run.callbacks[-1] is self:
            self.run.budget.end_step(self.run)

    def write(self) -> None:
        """Writes what is pending, on the bill."""
        with self.bill.billed("write"):
            self.flush()

    def flush(self) -> None:
        """Writes what is pending: the one place that waits for the device."""
        self.file.flush()

    def finish(self, completed: bool = True) -> None:
        """Writes what is pending and ends the file; training may have been cut short."""
        self.flush()
        self.file.close()

    def state_dict(self) -> dict[str, Any]:
        """Where the record is and how far it goes, for a checkpoint; writes what is pending."""
        self.flush()
        return {**self.file.state_dict(), "share": asdict(self.share)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what :meth:`state_dict` returned, before :meth:`start`."""
        self.file.load_state_dict(state_dict)
        self.share = Share(**state_dict.get("share", {}))

    def measure_if_due(self, last: bool = False) -> None:
        """Records and draws the current weights, unless that is done already or not due.

        Args:
            last: Whether training ends here: what is not done yet is due.
        """
        run, file, step = self.run, self.file, self.run.step
        last = last and step > file.began
        if last or (step > file.last_step and file.came(self.due, step)):
            with self.bill.billed("record"), torch.no_grad():
                self.take_rest() if last else self.take()
            file.last_step = step
        if self.draws(step) or (last and self.pictures and step > file.last_drawn):
            drawn = run.optional(f"{self.name}: the picture of step {step}", once=self.name)
            with self.bill.billed("pictures"), torch.no_grad(), drawn:
                self.draw(run.trainer, run.module, run.writer)
            file.last_drawn = step
        file.since = step

    def table(self) -> Table:
        """What is recorded of this run."""
        module = self.run.module
        metadata = {
            "callback": type(self).__qualname__,
            "seed": None if self.run.seed is None else str(self.run.seed),
            "hyperparameters": self.run.hyperparameters,
        }
        with self.run.optional(f"{self.name}: about()", once=f"{self.name}: about()"):
            metadata |= self.about()
        return Table(
            self.name, *self.items(module), self.quantities, self.nulls(module), self.reference,
            metadata, self.group, self.run.all_tags, self.run.shown_elsewhere(self),
        )  # fmt: skip

    @property
    @override
    def state_key(self) -> str:
        return f"lit_gamma.{self.name}"

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trajectory_callbacks(trainer)
        if callbacks[0] is self:
            run_of(trainer, pl_module, callbacks)
        self.start(self.run)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.before(batch)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.run.step = trainer.global_step
        self.collect(outputs, batch)
        self.advance()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for callback in self.run.callbacks:  # So that the end of any sees what all have recorded.
            callback.measure_if_due(last=True)
        self.finish()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if not hasattr(self, "run"):  # It ends before it has begun.
            return
        try:
            if isinstance(exception, KeyboardInterrupt) and self.run.alone:
                self.measure_if_due(last=True)
            self.finish(completed=False)
        except Exception as error:  # It must not cost the other callbacks their records.
            rank_zero_warn(f"{self.name}: the end of its record is lost ({error})")


def trajectory_callbacks(trainer: Trainer) -> list[TrajectoryCallback]:
    """The trainer's trajectory callbacks, in its order."""
    return [c for c in trainer.callbacks if isinstance(c, TrajectoryCallback)]  # type: ignore[attr-defined]
