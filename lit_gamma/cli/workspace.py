"""A workspace of one's own: the configs and callbacks that the package ships, laid down anew."""

from __future__ import annotations

import shutil
from argparse import ArgumentParser
from pathlib import Path

from lit_gamma.errors import InputError

SHIPPED = Path(__file__).parent / "shipped"
"""Copies of ``configs/`` and ``callbacks/`` in a wheel; links to them in a clone."""


def shipped_config(name: str | Path) -> Path | None:
    """The config that the package ships as ``anchor.yaml`` or ``configs/anchor.yaml``, if any."""
    path = SHIPPED / "configs" / str(name).removeprefix("configs/")
    return path if path.is_file() else None


def init(arguments: list[str]) -> None:
    """Lays down ``configs/`` and ``callbacks/`` in a folder, and says what to type next.

    Args:
        arguments: The folder: a new one, or one that is empty but for hidden files.

    Raises:
        InputError: The folder is a file, or holds something.
    """
    parser = ArgumentParser(
        prog="python -m lit_gamma init",
        description="Lay down the configs and callbacks that come with lit-gamma, to be changed.",
    )
    parser.add_argument("folder", type=Path, help="a new or an empty folder")
    folder: Path = parser.parse_args(arguments).folder
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a new folder")
    held = sorted(path.name for path in folder.glob("[!.]*"))
    if held:
        raise InputError(
            f"{folder} holds {held[0]}, and init overwrites nothing: name a new or an empty folder"
        )
    for part in ("configs", "callbacks"):
        shutil.copytree(SHIPPED / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    print(
        f"{folder} holds configs/ and callbacks/ now. Next:\n"
        f"  cd {folder}\n"
        "  lit-gamma fit --config configs/anchor.yaml"
    )
