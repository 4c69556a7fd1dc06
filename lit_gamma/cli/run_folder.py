"""Where a run goes: a folder of its own, whatever logs it; a resumed run goes on in its own."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lit_gamma.errors import InputError

FolderLogger = TensorBoardLogger | CSVLogger
"""Loggers that keep the files of each run in a folder."""


class RunTrainer(Trainer):
    """Lightning's Trainer, whose ``log_dir`` is the run's folder with any logger.

    Attributes:
        folder: The run's folder, on rank 0; None outside of :func:`own_folder`.
    """

    folder: Path | None = None

    @property
    @override
    def log_dir(self) -> str | None:
        folder = self.strategy.broadcast(self.folder)
        return super().log_dir if folder is None else str(folder)


@contextmanager
def own_folder(trainer: RunTrainer, ckpt_path: str | None, name: str) -> Iterator[None]:
    """Takes a folder for the fit inside, and gives it back if nothing was written there.

    The version of the first logger with folders names it, or ``name`` where there is none; where
    that is taken, ``-2``, ``-3``, ... follow. The other loggers with folders take the same name in
    theirs, and W&B and MLflow call the run so. Fits that start together get folders apart: a folder
    is taken by making it.
    A run that is resumed from its last checkpoint goes on in its own folder: it keeps its config
    and its ``metrics.csv``, the new ones being saved as ``config-step<N>.yaml`` and the old one as
    ``metrics-to-step<N>.csv``, and TensorBoard drops what came after the checkpoint.

    Args:
        trainer: The trainer, before its loggers have written anything.
        ckpt_path: The checkpoint that the fit goes on from.
        name: What sets the run apart.

    Raises:
        InputError: Another fit goes on in the run's folder: each would spoil the other's record.
    """
    dry: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if not first or dry:
        yield
    elif checkpoint := _of_a_run(ckpt_path, _root(trainer)):
        with _alone_in(checkpoint.parents[1]):
            _go_on(trainer, checkpoint)
            _belong_to(checkpoint.parents[1], trainer)
            yield
    else:
        folders, parents = _new(trainer, name)
        _belong_to(folders[0], trainer)
        try:
            with _alone_in(folders[0]):
                yield
        finally:
            if not (folders[0] / "trajectory").exists() and not trainer.global_step:
                for folder in folders:  # Training has not begun.
                    shutil.rmtree(folder, ignore_errors=True)
            _remove_empty([*folders, *parents])


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keeps other fits out of a run's folder, if its file system locks folders (NFS does not)."""
    held = [os.open(folder, os.O_RDONLY)]

    def let_go() -> None:
        while held:
            os.close(held.pop())

    os.register_at_fork(after_in_child=let_go)  # Workers may outlive the fit.
    try:
        if not _locked(held[0]):
            raise InputError(
                f"{folder}: another fit goes on in this folder; wait for it, or end it"
            )
        yield
    finally:
        let_go()


def _locked(folder: int) -> bool:
    """Whether an open folder has no other lock, or can have none."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return not isinstance(error, BlockingIOError)
    return True


def folder_loggers(trainer: Trainer) -> list[FolderLogger]:
    """The trainer's loggers that keep each run in a folder."""
    return [logger for logger in trainer.loggers if isinstance(logger, FolderLogger)]


def _root(trainer: Trainer) -> Path:
    """Where the runs' folders are: the first logger's that has folders, or else files of its own.

    MLflow's are those of its store, which takes no others, and is ``runs`` in many a config.
    """
    for logger in folder_loggers(trainer):
        return Path(logger.root_dir)
    for other in trainer.loggers:
        if other.save_dir and not isinstance(other, MLFlowLogger):
            return Path(other.save_dir, other.name or "")
    return Path(trainer.default_root_dir, "lit_gamma_runs" if trainer.loggers else "runs")


def _of_a_run(ckpt_path: str | None, root: Path) -> Path | None:
    """The checkpoint, if it is the last one of a run; from an earlier one another run branches."""
    if ckpt_path is None:
        return None
    path = Path(ckpt_path).absolute()
    last = path.name in ("last.ckpt", "last.ckpt.old")  # The latter's successor is not whole.
    return path if last and path.exists() and path.parents[2] == root.absolute() else None


def _go_on(trainer: RunTrainer, checkpoint: Path) -> None:
    rest = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint  # Of a sharded one.
    step: int = torch.load(rest, mmap=True, weights_only=False)["global_step"]
    name = checkpoint.parents[1].name
    trainer.folder = _root(trainer) / name
    for logger in folder_loggers(trainer):
        logger._version = name
        if isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step + 1
        else:
            _begin_csv(logger, f"metrics-to-step{step}.csv")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, SaveConfigCallback):
            callback.config_filename = f"config-step{step}.yaml"


def _begin_csv(logger: CSVLogger, earlier: str) -> None:
    """Renames the earlier part of ``metrics.csv``: Lightning begins by deleting it."""
    with suppress(FileNotFoundError):
        Path(logger.log_dir, "metrics.csv").rename(Path(logger.log_dir, earlier))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*exists and is not empty")
        _ = logger.experiment


def _belong_to(folder: Path, trainer: Trainer) -> None:
    """Puts checkpoints without a place into the run's folder, and names after it what has none."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and logger._name is None:
            logger._wandb_init["name"] = folder.name
        elif isinstance(logger, MLFlowLogger) and logger._run_name is None:
            logger._run_name = folder.name
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder / "checkpoints")


def _new(trainer: RunTrainer, name: str) -> tuple[list[Path], list[Path]]:
    """Makes folders that were not there, the run's first; returns them and the parents made."""
    loggers = folder_loggers(trainer)
    wanted = [logger._version for logger in loggers] or [None]
    asked = [next((x for x in (version, wanted[0]) if x is not None), name) for version in wanted]
    for n in itertools.count(1):
        versions = [_numbered(version, n) for version in asked]
        for logger, version in zip(loggers, versions, strict=False):
            logger._version = version
        folders = [Path(x.log_dir) for x in loggers] or [_root(trainer) / str(versions[0])]
        try:
            made = _made(list(dict.fromkeys(folder.absolute() for folder in folders)))
        except FileExistsError:
            continue
        trainer.folder = folders[0]
        for logger in loggers:
            if isinstance(logger, CSVLogger):
                _ = logger.experiment  # Later, the config there makes it warn.
        return made
    raise AssertionError


def _numbered(version: str | int, n: int) -> str | int:
    """The n-th try of a version, from 1 on."""
    if isinstance(version, int):
        return version + n - 1
    if Path(version).name != version or version in ("", ".."):
        raise InputError(f"trainer.logger: version {version!r} cannot name a run's folder")
    return version if n == 1 else f"{version}-{n}"


def _made(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Makes all folders or none; returns them and the parents that were made with them.

    Raises:
        FileExistsError: One was there.
    """
    made: list[Path] = []
    parents: list[Path] = []
    for folder in folders:
        missing = [parent for parent in folder.parents if not parent.exists()]
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            _remove_empty([*made, *parents])
            raise
        made.append(folder)
        parents += missing
    return made, parents


def _remove_empty(folders: Sequence[Path]) -> None:
    """Removes the folders that hold nothing, the deepest first."""
    for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # It is gone, or holds something.
            folder.rmdir()
