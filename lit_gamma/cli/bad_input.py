"""What a config or an argument cannot mean, refused in one line before anything is made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info

from lit_gamma.errors import InputError
from lit_gamma.files import check_checkpoint, is_whole, resume_point

_AT_LEAST = {
    "max_steps": -1,
    "max_epochs": -1,
    "min_steps": 0,
    "min_epochs": 0,
    "accumulate_grad_batches": 1,
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
}


@contextmanager
def in_one_line(what: str) -> Iterator[None]:
    """Turns what Lightning raises over a config into one line.

    Args:
        what: The part of the config that is made inside; nothing runs there yet.
    """
    try:
        yield
    except InputError:
        raise
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(f"{what}: {str(error).strip().partition(chr(10))[0]}") from error


def refuse_impossible(trainer: Mapping[str, Any]) -> None:
    """Refuses numbers that Lightning takes without a word, or stumbles over in training.

    Raises:
        InputError: A key of ``trainer`` is out of its range.
    """
    clip = trainer.get("gradient_clip_val")
    if clip is not None and not 0 <= clip < math.inf:
        raise InputError(f"trainer.gradient_clip_val must be finite and not negative, got {clip}")
    for name, least in _AT_LEAST.items():
        value = trainer.get(name)
        if value is not None and value < least:
            raise InputError(f"trainer.{name} must be at least {least}, got {value}")
    interval = trainer.get("val_check_interval")
    if isinstance(interval, (int, float)) and not interval > 0:
        raise InputError(f"trainer.val_check_interval must be positive, got {interval}")


def checkpoint_at(path: str) -> str:
    """Where to go on from; refuses a path that holds no checkpoint, or one that was cut short.

    Args:
        path: A local file or folder, or what Lightning makes of ``last``, ``best`` and addresses.

    Returns:
        The path, or that of the sharded checkpoint before it if that one was not finished.

    Raises:
        InputError: It is missing, empty or damaged, or a folder without a whole sharded checkpoint.
    """
    if "://" in path:
        return path
    file = resume_point(Path(path))
    if file != Path(path):
        rank_zero_info(f"{path} was not written to its end: {file} is taken")
        return str(file)
    if not file.exists():
        if path.endswith(".ckpt"):
            raise InputError(f"--ckpt_path {path} does not exist")
    elif file.is_dir():
        if not is_whole(file):
            raise InputError(f"--ckpt_path {path} is a folder without a whole sharded checkpoint")
    else:
        check_checkpoint(file)
    return path
