"""Overhead: what may recording cost, and what does it?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lit_gamma.recording.budget import Budget
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.table import Index, Quantity


class Overhead(TrajectoryCallback):
    """Limits what all trajectory callbacks cost together, and records what each does cost.

    After ten steps, whose times it takes, the run says what will be recorded how often. What fits
    is recorded as scheduled, and matrices take turns with what is left. If it is too much, jobs are
    done at every second, fourth, ... step of their schedules, the dearest first: pictures, then
    records, last what is recorded at every step. Some of each is recorded in any case. In the
    record are costs on the host since the recorded step before.

    Logged as ``6_overhead/share_of_step``, the sum over the callbacks; the file has the
    ``quantities`` below of each.

    Args:
        schedule: The steps to record, every 100 by default; nothing is known yet at step 0.
        overhead: What recording may cost in all, as a share of the time of training without it;
            None for no limit: everything is recorded as scheduled, and no matrices take turns.
    """

    default_schedule = Schedule(every=100)
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "ms_per_step",
            "milliseconds per optimizer step spent in the callback, on the host",
            range=">= 0",
        ),
        Quantity(
            "share_of_step",
            "the same over the time of a step without trajectory callbacks",
            range=">= 0",
            chart="share of a step",
            joined="sum",
        ),
    )
    section = "6"

    def __init__(self, schedule: Schedule | None = None, overhead: float | None = 0.05) -> None:
        super().__init__(schedule)
        self.overhead = Budget(overhead).overhead

    @override
    def due(self, step: int) -> bool:
        return step > self._since_step and super().due(step)

    @override
    def take_rest(self) -> None:
        if self.run.step > self._since_step:
            super().take_rest()

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        names = [callback.name for callback in self.run.callbacks]
        return {"callback": names}, names

    @override
    def start(self, run: Run) -> None:
        self._billed = torch.zeros(len(run.callbacks), dtype=torch.float64)
        self._since_step, self._clock = run.step, time.perf_counter()
        super().start(run)

    @override
    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        run, now = self.run, time.perf_counter()
        billed = torch.tensor([callback.bill.seconds for callback in run.callbacks]).double()
        spent, elapsed, steps = (
            billed - self._billed,
            now - self._clock,
            run.step - self._since_step,
        )
        self._billed, self._since_step, self._clock = billed, run.step, now
        return {
            "ms_per_step": spent * 1e3 / steps,
            "share_of_step": spent / (elapsed - spent.sum()),
        }
