"""Callbacks that measure training batches, from what ``training_step`` returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma.recording.callback import TrajectoryCallback


class BatchTrajectory(TrajectoryCallback):
    """Records quantities of the training batches, from what ``training_step`` returned.

    The batches of step t were run with the weights W_t; under gradient accumulation they are
    measured together. Subclasses implement :meth:`measure`.
    """

    _step = 0

    def measure(self, outputs: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Measures the training batches of one optimizer step.

        Args:
            outputs: What ``training_step`` returned for each micro-batch, detached.

        Returns:
            For each quantity a scalar tensor, or what :meth:`settle` takes, without the first
            dimension; always the same names.
        """
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record, or continues it after a resume."""
        self._step = trainer.global_step
        self._outputs: list[Mapping[str, Tensor]] = []
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collects the batch; records once an optimizer step has used it."""
        if self.due(self._step):
            self._outputs.append(outputs)
        if trainer.global_step > self._step:
            if self._outputs and self._step > self._last_step:
                with self.billed("record"):
                    values = self.measure(self._outputs)
                    self.record(self._step, {name: value[None] for name, value in values.items()})
                    self._last_step = self._step
            self._outputs, self._step = [], trainer.global_step
        self.flush_if_due(trainer.global_step)
        self.calibrate(trainer)

    def take_if_due(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is no batch before the first step."""
