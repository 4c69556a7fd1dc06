"""What Lightning tells a recording."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.recording.other_loggers import OtherLoggers
from lit_gamma.recording.run import Run
from lit_gamma.trajectory.tensorboard import keep_writing

if TYPE_CHECKING:
    from lit_gamma.recording.callback import TrajectoryCallback


def run_of(
    trainer: Trainer, pl_module: LightningModule, callbacks: Sequence[TrajectoryCallback]
) -> Run:
    """Makes the :class:`Run` of a fit that starts; all ranks must, as they agree on the folder."""
    dry: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    run = Run(
        module=pl_module,
        folder=_folder(trainer),
        dry=bool(dry),
        callbacks=callbacks,
        step=trainer.global_step,
        total_steps=trainer.estimated_stepping_batches,
        trainer=trainer,
        data=trainer.datamodule,  # type: ignore[attr-defined]
        writer=tensorboard_writer(trainer),
        others=None if dry else other_loggers(trainer),
        validation=lambda: validation_sets(trainer),
        precision=trainer.precision_plugin.train_step_context,
        resumed_from=Path(trainer.ckpt_path) if trainer.ckpt_path else None,
        hyperparameters={k: v for k, v in pl_module.hparams.items() if not str(k).startswith("_")},
    )
    if callbacks and not run.dry:
        run.claim()
    return run


def _folder(trainer: Trainer) -> Path:
    """Lightning's log_dir, unless that is MLflow's store, which takes no other files."""
    log_dir = trainer.log_dir
    for logger in trainer.loggers[:1]:
        if isinstance(logger, MLFlowLogger) and log_dir == logger.save_dir:
            log_dir = None
    return Path(log_dir or trainer.default_root_dir)


def tensorboard_writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's TensorBoard writer; None without a TensorBoardLogger or off rank 0."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            return keep_writing(logger.experiment)
    return None


def other_loggers(trainer: Trainer) -> OtherLoggers | None:
    """The run's loggers but TensorBoard's; None without one or off rank 0."""
    others = [x for x in trainer.loggers if not isinstance(x, TensorBoardLogger)]
    return OtherLoggers(others) if others and trainer.is_global_zero else None


def validation_sets(trainer: Trainer) -> Mapping[str, Iterable[Any]]:
    """The validation loaders by name, as they are before the trainer shards or limits them."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None and is_overridden("val_dataloader", data):
        loaders = data.val_dataloader()
    else:
        loaders = trainer.val_dataloaders
    if not loaders:
        return {}
    if isinstance(loaders, Mapping):
        return dict(loaders)
    several = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    return {str(i): loader for i, loader in enumerate(several)}
