"""Checkpoints worth measuring: the weights along the way, at log-spaced steps."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from typing_extensions import override

from lit_gamma.callbacks.checkpoints import Checkpoints
from lit_gamma.recording.schedule import Schedule


class KeepCheckpoints(Checkpoints):
    """Keeps a checkpoint of every step of a schedule, ``checkpoints/step=<N>.ckpt``.

    They lie beside those that training goes on from, and none is deleted. As there, one that the
    disk refuses or that is not finite is left out with a warning.

    Args:
        schedule: The steps; by default four per factor of ten, and step 0.
        weights_only: Whether to leave out the optimizer's state, twice as large as the weights:
            training cannot go on from such a checkpoint; ``generate`` and ``trained.load`` take it.
    """

    def __init__(self, schedule: Schedule | None = None, weights_only: bool = True) -> None:
        super().__init__(filename="{step}", save_top_k=-1, save_weights_only=weights_only)
        self.schedule = schedule or Schedule(per_decade=4)
        self._seen = -1

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen = trainer.global_step - (trainer.global_step == 0)
        self._save_if_due(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._save_if_due(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing: the schedule alone decides."""

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing: the schedule alone decides."""

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Does nothing: the schedule alone decides."""

    def _save_if_due(self, trainer: Trainer) -> None:
        step = trainer.global_step
        passed, self._seen = range(self._seen + 1, step + 1), step
        dry: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        if any(map(self.schedule.due, passed)) and not dry:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
