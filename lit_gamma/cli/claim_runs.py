"""The runs that a claim asks for, and its verdict."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gamma.cli.known_claims import file_of_claim
from lit_gamma.cli.lightning_cli import command_line
from lit_gamma.cli.nearest import did_you_mean
from lit_gamma.cli.sweep.command import carry_out
from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.plan import FitConfigs, plan
from lit_gamma.cli.sweep.planned import Config
from lit_gamma.cli.terminal import tell, wrapped
from lit_gamma.cli.workspace import shipped_config
from lit_gamma.comparison.claim_file import Claim, ClaimSweep, read_claim
from lit_gamma.comparison.claim_page import write_claim
from lit_gamma.comparison.claim_verdict import Judged, in_words, judge, refuse_absent_settings
from lit_gamma.comparison.sweep_runs import SweepRuns, sweep_of
from lit_gamma.comparison.sweep_table import table_of
from lit_gamma.errors import InputError


@dataclass(frozen=True)
class Planned:
    """A sweep that a claim looks at, ready to be made.

    Attributes:
        folder: Where its runs go.
        base: Its config without the grid.
    """

    folder: SweepFolder
    base: Config

    def runs(self) -> SweepRuns:
        """What its runs have come to."""
        return sweep_of(self.folder.path, table_of(self.folder.rows()))


def make(file: Path, preset: str, jobs: int, out: Path, options: list[str], again: str) -> None:
    """Makes what is missing of a claim's runs, and says what they say of it.

    Args:
        file: The claim's.
        preset: Which size of it.
        jobs: Runs at a time; with none, the verdict of the runs that there are.
        out: Folder of all claims.
        options: Those that name the files which the runs need.
        again: The command, to say how to go on.

    Raises:
        InputError: Something asked for cannot be; nothing was started then. Or a run failed.
    """
    stated = read_claim(file)
    sweeps = dict(_sweeps_of(stated, preset))
    files = _files(sweeps, options)
    n_runs = sum(sweep.n_runs for _, sweep in sweeps.values())
    tell(f"checking the configs of {n_runs} runs")
    planned = {
        label: _planned(of, sweep, files, out / of.name / preset / label.split("/")[-1])
        for label, (of, sweep) in sweeps.items()
    }
    refuse_absent_settings(stated, {label: of.runs() for label, of in planned.items()})
    for label, of in planned.items() if jobs else ():
        tell(f"sweep {label}, in {of.folder.path}")
        with of.folder.held(of.base):
            carry_out(of.folder, jobs, None, again)
    judged = judge(stated, preset, {label: of.runs() for label, of in planned.items()})
    written = write_claim(judged, out / stated.name / preset, again)
    _tell(judged, written)
    if failed := [run for of in planned.values() for run in of.folder.failures]:
        raise InputError(f"{len(failed)} runs failed: {', '.join(failed)}")


def _sweeps_of(stated: Claim, preset: str) -> Iterator[tuple[str, tuple[Claim, ClaimSweep]]]:
    """The sweeps that a claim's parts look at, and whose they are."""
    for label in stated.sweeps:
        owner, _, name = label.rpartition("/")
        of = read_claim(file_of_claim(owner)) if owner else stated
        for one in dict.fromkeys((stated.name, of.name)):
            known = (stated if one == stated.name else of).presets
            if preset not in known:
                hint = did_you_mean(preset, known) or f"; known: {', '.join(known)}"
                raise InputError(f"claim {one} has no preset {preset!r}{hint}")
        if name not in of.presets[preset]:
            raise InputError(f"claim {stated.name}: {of.name}, preset {preset}, has no {name}")
        yield label, (of, of.presets[preset][name])


def _files(sweeps: Mapping[str, tuple[Claim, ClaimSweep]], arguments: list[str]) -> dict[str, str]:
    """The files that the runs need, as given."""
    needs = {
        name: what
        for of, sweep in sweeps.values()
        for name, what in of.needs.items()
        if f"${name}" in _strings(sweep.options)
    }
    parser = ArgumentParser(allow_abbrev=False, exit_on_error=False)
    for name in needs:
        parser.add_argument(f"--{name}")
    given, unknown = parser.parse_known_args(arguments)
    if unknown:
        options = ["--preset", "--jobs", "--out", *(f"--{name}" for name in needs)]
        hint = did_you_mean(unknown[0], options) or f"; known: {', '.join(options)}"
        raise InputError(f"claim has no option {unknown[0]}{hint}")
    for name, what in needs.items():
        if getattr(given, name) is None:
            raise InputError(f"these runs need a file: --{name} FILE, {what}")
    return dict(vars(given))


def _planned(of: Claim, sweep: ClaimSweep, files: Mapping[str, str], out: Path) -> Planned:
    config = Path("configs", sweep.config)
    found = config if config.is_file() else shipped_config(sweep.config) or config
    options = {key: _filled(value, files) for key, value in sweep.options.items()}
    shared = [
        f"--config={found}",
        *(f"--{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in options.items()),
    ]
    try:
        fits = command_line(FitConfigs, ["fit", *shared])
        assert isinstance(fits, FitConfigs)
        folder = SweepFolder(out, plan(fits, shared, sweep.grid, sweep.seeds, out))
    except InputError as error:
        raise InputError(f"claim {of.name}: {error}") from error
    folder.refuse_another(fits.base, fits.read_saved)
    return Planned(folder, fits.base)


def _filled(value: Any, files: Mapping[str, str]) -> Any:
    """A value with files in the place of their names, ``$text``."""
    if isinstance(value, Mapping):
        return {key: _filled(of, files) for key, of in value.items()}
    if isinstance(value, list):
        return [_filled(of, files) for of in value]
    return files.get(value[1:], value) if str(value).startswith("$") else value


def _strings(value: Any) -> set[str]:
    """All texts in nested values."""
    if isinstance(value, Mapping):
        return _strings(list(value.values()))
    if isinstance(value, list):
        return {text for of in value for text in _strings(of)}
    return {str(value)}


def _tell(judged: Judged, written: list[Path]) -> None:
    incomplete = f"; incomplete: {judged.absent}" if judged.absent else ""
    lines = [f"{judged.claim.name}: {judged.claim.says}"]
    for part, outcome in zip(judged.claim.parts, judged.outcomes, strict=True):
        lines.append(f"  {outcome.verdict:<10} {part.says}: {in_words(outcome)}")
    lines.append(f"{judged.verdict}, by preset {judged.preset}{incomplete}")
    print("", *(wrapped(line, sys.stdout) for line in lines), sep="\n")
    print(*(f"wrote {path}" for path in written), sep="\n")
