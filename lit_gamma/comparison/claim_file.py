"""A claim as its file states it: the runs to make, and what must be seen in them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_gamma.comparison.claim_kinds import KINDS
from lit_gamma.errors import InputError

_SWEEP_KEYS = ("sweep", "than_sweep")


@dataclass(frozen=True)
class ClaimSweep:
    """A sweep that a claim asks for.

    Attributes:
        config: The config's name among the workspace's, or else the shipped ones.
        grid: Key to its values, as they would be written on the command line.
        options: What else differs from the config: of ``fit``, as its command line has them.
        seeds: Runs of each cell.
    """

    config: str
    grid: Mapping[str, list[str]]
    options: Mapping[str, Any]
    seeds: int

    @property
    def n_runs(self) -> int:
        """Its runs, of all cells and seeds."""
        return self.seeds * math.prod(map(len, self.grid.values()))


@dataclass(frozen=True)
class Part:
    """One thing that must be seen.

    Attributes:
        says: In a sentence.
        kind: Its test, one of :data:`~lit_gamma.comparison.claim_kinds.KINDS`.
        asked: The arguments of that.
    """

    says: str
    kind: str
    asked: Mapping[str, Any]

    @property
    def sweeps(self) -> list[str]:
        """The sweeps that it looks at, another claim's as ``C4/anchor``."""
        return list(dict.fromkeys(_named_sweeps(self.asked)))


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        name: Of the file, ``C4``.
        says: In a sentence.
        needs: The files that its runs need, by the name of their option, each with what it is.
        presets: Name to sweeps by their names.
        minutes: Name of a preset to the minutes that its runs take, as the file says.
        parts: What must be seen.
    """

    name: str
    says: str
    needs: Mapping[str, str]
    presets: Mapping[str, Mapping[str, ClaimSweep]]
    minutes: Mapping[str, float]
    parts: list[Part]

    @property
    def sweeps(self) -> list[str]:
        """All sweeps that its parts look at."""
        return list(dict.fromkeys(name for part in self.parts for name in part.sweeps))


def read_claim(path: Path) -> Claim:
    """Reads and checks a claim.

    Raises:
        InputError: It is not valid YAML, or something in it is missing or unknown; in one line.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # In text, as a grid's values are: 5.0e-4 names a run otherwise than 0.0005.
        written, meant = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise InputError(f"claim {path} is not valid YAML: {said}") from error
    try:
        presets = {name: _sweeps(of) for name, of in written["presets"].items()}
        minutes = {name: float(of["minutes"]) for name, of in written["presets"].items()}
        needs = {name: str(what) for name, what in written.get("needs", {}).items()}
        parts = [_part(part) for part in meant["parts"]]
        found = Claim(path.stem, str(meant["claim"]), needs, presets, minutes, parts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"claim {path} cannot be read: {what}") from error
    except InputError as error:
        raise InputError(f"claim {path}: {error}") from error
    _refuse_unknown_sweeps(found, path)
    return found


def _sweeps(preset: Mapping[str, Any]) -> dict[str, ClaimSweep]:
    return {
        name: ClaimSweep(
            of["config"],
            dict(of["grid"]),
            {**preset.get("options", {}), **of.get("options", {})},
            int(of.get("seeds") or preset["seeds"]),
        )
        for name, of in preset.get("sweeps", {}).items()
    }


def _part(written: Mapping[str, Any]) -> Part:
    """A part whose kind takes just what it is given."""
    says, kind = str(written["says"]), str(written["kind"])
    asked = {key: value for key, value in written.items() if key not in ("says", "kind")}
    if kind not in KINDS:
        raise InputError(f"part {says!r}: unknown kind {kind!r}; known: {', '.join(KINDS)}")
    try:
        inspect.signature(KINDS[kind]).bind({}, **asked)
    except TypeError as error:
        raise InputError(f"part {says!r} of kind {kind}: {error}") from error
    return Part(says, kind, asked)


def _refuse_unknown_sweeps(claim: Claim, path: Path) -> None:
    for preset, sweeps in claim.presets.items():
        for name in claim.sweeps:
            if "/" not in name and name not in sweeps:
                raise InputError(f"claim {path}: preset {preset} has no sweep {name!r}")


def _named_sweeps(asked: Any) -> Iterator[str]:
    if isinstance(asked, Mapping):
        for key, value in asked.items():
            if key in _SWEEP_KEYS:
                yield str(value)
            else:
                yield from _named_sweeps(value)
