"""Which checkpoints a series has, and the step of each."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_gamma.errors import InputError
from lit_gamma.series.hub import Revision, revisions
from lit_gamma.series.stored import SUFFIXES, is_folder_of_one, open_stored

_STEP = re.compile(r"(?:step|checkpoint)[=_-]?(\d+)", re.IGNORECASE)
_NUMBER_AT_END = re.compile(r"(\d+)$")


@dataclass(frozen=True)
class Member:
    """One checkpoint of a series.

    Attributes:
        step: Optimizer steps taken.
        place: Where it is, or the revision that is fetched when its turn comes.
    """

    step: int
    place: Path | Revision

    def fetch(self) -> Path:
        """Where it is on this machine.

        Raises:
            InputError: The hub does not have it, or cannot be reached.
        """
        return self.place if isinstance(self.place, Path) else self.place.fetch()


def members(series: Sequence[str]) -> list[Member]:
    """Finds the checkpoints of a series.

    Args:
        series: Paths, globs, or revisions of the hub's ``repo@step1000,step2000``. Of a run's
            folder its ``checkpoints/`` count; of any other all checkpoints in it.

    Returns:
        They by their steps, each step once.

    Raises:
        InputError: There is none, or a step is not known.
    """
    found: dict[int, Member] = {}
    faults: list[InputError] = []
    for place in (place for spec in series for place in _places(spec)):
        try:
            step = step_of(place)
        except InputError as error:
            faults.append(error)
        else:
            found.setdefault(step, Member(step, place))
    if not found:
        raise faults[0]
    for fault in faults:
        warnings.warn(f"one of the series is left out: {fault}", stacklevel=3)
    return [found[step] for step in sorted(found)]


def step_of(place: Path | Revision) -> int:
    """A checkpoint's step: in its name ``step<N>``, else what it says, else a number at its end.

    Raises:
        InputError: None of them is there.
    """
    name = place.stem if isinstance(place, Path) and place.is_file() else place.name
    if said := _STEP.search(name):
        return int(said[1])
    if isinstance(place, Path) and place.is_file():
        step = open_stored(place).step
        if isinstance(step, int):
            return step
    if last := _NUMBER_AT_END.search(name):
        return int(last[1])
    raise InputError(f"{place}: its step is not known; name it by its step, as step1000")


def _places(spec: str) -> list[Path] | list[Revision]:
    path = Path(spec)
    if path.exists():
        return _under(path)
    if matches := sorted(glob.glob(spec)):
        return [place for match in matches for place in _under(Path(match))]
    repo, at, names = spec.rpartition("@")
    if at and repo and names:
        return revisions(repo, names.split(","))
    raise InputError(
        f"{spec} does not exist; give checkpoints, a folder of some, a glob, or revisions of the "
        "hub, as EleutherAI/pythia-160m@step1000,step2000"
    )


def _under(path: Path) -> list[Path]:
    """A checkpoint itself, or those in a folder: first of a step those that are named by it."""
    if path.is_file():
        return [path]
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    inside = sorted(folder.iterdir())
    found = [p for p in inside if p.is_dir() and (is_folder_of_one(p) or _STEP.search(p.name))]
    if not found and is_folder_of_one(folder):
        return [folder]
    found += [p for p in inside if p.is_file() and p.suffix in SUFFIXES]
    if not found:
        raise InputError(
            f"{folder} is neither a checkpoint nor a folder of some: it holds no "
            f"{', '.join(f'*{suffix}' for suffix in SUFFIXES)} and no folder step<N>/"
        )
    return sorted(found, key=lambda p: not _STEP.search(p.name))
