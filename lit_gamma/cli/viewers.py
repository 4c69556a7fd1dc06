"""How to look at a run: the command, page or file of each of its loggers."""

from __future__ import annotations

from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)


def viewers(trainer: Trainer) -> list[str]:
    """What shows the run, a line for each logger that has a viewer."""
    return [said for logger in trainer.loggers if (said := _viewer(logger))]


def _viewer(logger: Logger) -> str:
    """A command, an address or a file; empty for a logger that is not known."""
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {logger.root_dir} --samples_per_plugin images=100"
    if isinstance(logger, CSVLogger):
        return str(Path(logger.log_dir, "metrics.csv"))
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        return f"wandb sync {Path(run.dir).parent}" if run.offline else str(run.url or "")
    if isinstance(logger, MLFlowLogger):
        store = logger.experiment.tracking_uri
        return store if store.startswith("http") else f"mlflow ui --backend-store-uri {store}"
    return ""
