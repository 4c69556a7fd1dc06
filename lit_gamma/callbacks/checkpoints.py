"""Checkpoints: can the run go on from them, whatever happens?"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lit_gamma.files import (
    check_checkpoint,
    drop_old,
    readable,
    save_checkpoint,
    set_aside,
)
from lit_gamma.weights.sharding import all_finite


class Checkpoints(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which never trades a good checkpoint for a bad one.

    A checkpoint appears under its name when it is whole and on disk, and is checked against its
    checksums when training goes on from it. A sharded one, a folder, is written in place, and the
    one before it waits beside it as ``<name>.old`` until it is whole. One that the disk refuses, or
    whose weights are not finite, is left out with a warning: training goes on, and what was saved
    before stays. The last step is always saved.
    """

    @property
    def saved_step(self) -> int:
        """Steps that the newest checkpoint has taken; 0 if there is none."""
        return self._last_global_step_saved

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if state and trainer.ckpt_path and self.dirpath:
            here = Path(trainer.ckpt_path).parent.resolve() == Path(self.dirpath).resolve()
            if here:  # Wherever the folder was when it was saved.
                checkpoint["callbacks"][self.state_key] = _at(self.dirpath, state)
        # Until a step follows there is nothing to save: a resume that breaks replaces nothing.
        self._last_global_step_saved = checkpoint["global_step"]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != trainer.max_steps:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.global_step == trainer.max_steps:
            # The last one follows the last validation. It comes before the end of the record, where
            # all is measured once more: a run that goes on has no end there.
            super().on_train_batch_end(trainer, pl_module, {}, None, 0)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_last_checkpoint(trainer, candidates)

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        with self._or_as_before():
            super().on_exception(trainer, pl_module, exception)

    @override
    def _save_topk_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        with self._or_as_before():
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    @override
    def _save_last_checkpoint(
        self, trainer: Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        with self._or_as_before():
            super()._save_last_checkpoint(trainer, monitor_candidates)

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        finite = trainer.strategy.reduce_boolean_decision(all_finite(trainer.lightning_module))
        fault = self._room_for(trainer, filepath) if finite else "the weights are not finite"
        if fault is None:
            try:
                super()._save_checkpoint(trainer, filepath)
            except OSError as error:
                fault = str(error)
                trainer.strategy.barrier("Trainer.save_checkpoint")  # Where the other ranks wait.
        fault = trainer.strategy.broadcast(fault)
        if fault is not None:
            rank_zero_warn(
                f"{filepath}: no checkpoint of step {trainer.global_step} ({fault}); training goes "
                "on, and the checkpoints before it stay"
            )
            raise _NotSavedError
        if trainer.is_global_zero:
            drop_old(Path(filepath))

    def _room_for(self, trainer: Trainer, filepath: str) -> str | None:
        """Makes room, before any rank writes; returns why there is none."""
        fault = None
        if trainer.is_global_zero:
            try:
                set_aside(Path(filepath))
            except OSError as error:
                fault = str(error)
        return trainer.strategy.broadcast(fault)

    @contextmanager
    def _or_as_before(self) -> Iterator[None]:
        """Undoes what a save that was refused has noted of itself."""
        before = {name: copy(value) for name, value in vars(self).items()}
        try:
            yield
        except _NotSavedError:
            vars(self).update(before)


def _at(folder: _PATH, state: dict[str, Any]) -> dict[str, Any]:
    """The state with the checkpoints of its folder in another one."""

    def moved(path: str) -> str:
        return str(Path(folder, os.path.relpath(path, state["dirpath"]))) if path else path

    paths = ("best_model_path", "kth_best_model_path", "last_model_path")
    return {
        **state,
        "dirpath": folder,
        **{key: moved(state[key]) for key in paths},
        "best_k_models": {moved(path): score for path, score in state["best_k_models"].items()},
    }


class WholeCheckpointIO(TorchCheckpointIO):
    """Local checkpoints that are whole or not there, and are checked when they are read."""

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None
    ) -> None:
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            save_checkpoint(checkpoint, Path(path))

    @override
    def load_checkpoint(
        self,
        path: _PATH,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        if not Path(path).is_file():
            return super().load_checkpoint(path, map_location, weights_only)
        check_checkpoint(Path(path))
        with readable(Path(path)):
            return super().load_checkpoint(path, map_location, weights_only)


class _NotSavedError(Exception):
    """A checkpoint was left out, on all ranks."""
