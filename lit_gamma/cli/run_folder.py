"""Where a run goes: a folder of its own, named in the config; a resumed run goes on in its own."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lit_gamma.errors import InputError

Logger = TensorBoardLogger | CSVLogger


@contextmanager
def own_folder(trainer: Trainer, ckpt_path: str | None, name: str) -> Iterator[None]:
    """Takes a folder for the fit inside, and gives it back if nothing was written there.

    The logger's version names it, or ``name`` where the logger has none; where that is taken,
    ``-2``, ``-3``, ... follow. Fits that start together get folders apart: a folder is taken by
    making it.
    A run that is resumed from its last checkpoint goes on in its own folder: it keeps its config,
    the new one is saved as ``config-step<N>.yaml``, and TensorBoard drops what came after the
    checkpoint.

    Args:
        trainer: The trainer, before its logger has written anything.
        ckpt_path: The checkpoint that the fit goes on from.
        name: What sets the run apart.
    """
    logger = trainer.logger
    dry: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not isinstance(logger, Logger) or not first or dry:
        yield
    elif checkpoint := _of_a_run(ckpt_path, Path(logger.root_dir)):
        _go_on(trainer, logger, checkpoint)
        yield
    else:
        if logger._version is None:
            logger._version = name
        made = _new(logger)
        try:
            yield
        finally:
            if not (made[0] / "trajectory").exists() and not trainer.global_step:
                shutil.rmtree(made[0], ignore_errors=True)  # Training has not begun.
            for folder in made:
                with suppress(OSError):  # It is gone, or holds something.
                    folder.rmdir()


def _of_a_run(ckpt_path: str | None, root: Path) -> Path | None:
    """The checkpoint, if it is the last one of a run; from an earlier one another run branches."""
    if ckpt_path is None:
        return None
    path = Path(ckpt_path).absolute()
    its_own = path.name == "last.ckpt" and path.is_file() and path.parents[2] == root.absolute()
    return path if its_own else None


def _go_on(trainer: Trainer, logger: Logger, checkpoint: Path) -> None:
    step: int = torch.load(checkpoint, mmap=True, weights_only=False)["global_step"]
    logger._version = checkpoint.parents[1].name
    if isinstance(logger, TensorBoardLogger):
        logger._kwargs["purge_step"] = step + 1
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            callback.config_filename = f"config-step{step}.yaml"


def _new(logger: Logger) -> list[Path]:
    """Makes a folder that was not there; returns it and the parents that were made with it."""
    asked = logger.version
    for n in itertools.count(1):
        if isinstance(asked, int):
            logger._version = asked + n - 1
        else:
            logger._version = asked if n == 1 else f"{asked}-{n}"
            if Path(asked).name != asked or asked in ("", ".."):
                raise InputError(f"trainer.logger: version {asked!r} cannot name a run's folder")
        folder = Path(logger.log_dir).absolute()
        missing = [parent for parent in folder.parents if not parent.exists()]
        try:
            folder.mkdir(parents=True)
            return [folder, *missing]
        except FileExistsError:
            continue
    raise AssertionError
