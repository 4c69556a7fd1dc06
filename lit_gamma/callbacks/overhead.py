"""Overhead: what does recording cost?"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma.recording.callback import TrajectoryCallback, trajectory_callbacks
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.table import Index


class Overhead(TrajectoryCallback):
    """Records what each trajectory callback costs, on the host, since the recorded step before.

    Logged, as ``overhead/<quantity>/<callback>``:

    ============= ================================================================== ======
    quantity      meaning                                                            range
    ============= ================================================================== ======
    ms_per_step   milliseconds per optimizer step                                    0 .. ∞
    share_of_step the same as a share of the time of a step without these callbacks  0 .. ∞
    ============= ================================================================== ======

    Args:
        schedule: The steps to record, every 100 by default; nothing is known yet at step 0.
    """

    default_schedule = Schedule(every=100)
    meanings: ClassVar[Mapping[str, str]] = {
        "ms_per_step": "milliseconds per optimizer step spent in the callback, on the host; >= 0",
        "share_of_step": "the same over the time of a step without trajectory callbacks; >= 0",
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {"share of a step": ["share_of_step"]}

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)

    def due(self, step: int) -> bool:
        """See :class:`TrajectoryCallback`."""
        return step > self._start_step and super().due(step)

    def items(self, pl_module: LightningModule) -> tuple[Index, Sequence[str]]:
        """One row per trajectory callback."""
        names = [callback.name for callback in trajectory_callbacks(pl_module.trainer)]
        return {"callback": names}, names

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start_step = trainer.global_step
        self._start = time.perf_counter()
        self._billed = torch.zeros(len(trajectory_callbacks(trainer)), dtype=torch.float64)
        super().on_train_start(trainer, pl_module)

    def observe(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """Reads the bills."""
        billed = torch.tensor([c.seconds for c in trajectory_callbacks(trainer)]).double()
        spent, elapsed = billed - self._billed, time.perf_counter() - self._start
        steps = trainer.global_step - self._start_step
        self._start_step, self._start, self._billed = (
            trainer.global_step,
            time.perf_counter(),
            billed,
        )
        return {
            "ms_per_step": spent * 1e3 / steps,
            "share_of_step": spent / (elapsed - spent.sum()),
        }
