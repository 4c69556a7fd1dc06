"""The claims that there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lit_gamma.cli.nearest import did_you_mean
from lit_gamma.cli.workspace import SHIPPED
from lit_gamma.comparison.claim_file import read_claim
from lit_gamma.errors import InputError

CLAIMS = Path("configs", "claims")


def file_of_claim(name: str) -> Path:
    """The claim's file: of the workspace, or else one that the package ships.

    Raises:
        InputError: There is none.
    """
    known = _files_of_claims()
    if name not in known:
        hint = did_you_mean(name, known)
        raise InputError(f"unknown claim {name!r}{hint}; known: {', '.join(known)}")
    return known[name]


def listed() -> Iterator[str]:
    """A line for each, with the minutes of its presets."""
    for path in _files_of_claims().values():
        found = read_claim(path)
        minutes = ", ".join(f"{preset} {n:g} min" for preset, n in found.minutes.items())
        yield f"  {found.name}  {found.says} ({minutes})"


def _files_of_claims() -> dict[str, Path]:
    """The claims of the workspace, and those that the package ships."""
    folders = (SHIPPED / CLAIMS, CLAIMS)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
