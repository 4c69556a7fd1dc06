"""What the command line does with recorded runs. Nothing here needs torch, which takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lit_gamma.comparison.report import write_report
from lit_gamma.comparison.runs import load_run
from lit_gamma.comparison.sweep_runs import SweepRuns, load_sweep
from lit_gamma.comparison.sweep_table import TABLE, runs_of
from lit_gamma.errors import InputError
from lit_gamma.trajectory.token_classes import TokenClasses


def report(
    runs: list[str],
    out: str | None = None,
    classes: TokenClasses = TokenClasses(),
    sweep: SweepRuns | None = None,
) -> None:
    """Show what a run, or several, have come to: one page in HTML.

    Args:
        runs: Directories of one run or several.
        out: The HTML file; by default report.html, of one run in its directory.
        classes: Thresholds of the classes of tokens.
        sweep: The sweep that they are of.
    """
    place = Path(runs[0] if len(runs) == 1 else "")
    _say(write_report(runs, out or place / "report.html", classes, sweep=sweep))


def compare(
    runs: list[str],
    out: str = "report.html",
    classes: TokenClasses = TokenClasses(),
    sweep: SweepRuns | None = None,
) -> None:
    """Compare runs: the page of report, and its numbers as CSV.

    Runs that differ only in their seed form a group; the group of the first run is the reference.
    Those that followed the same tokens (ProbeLoss) are compared token by token too.

    Args:
        runs: Directories of two or more runs, or of a sweep.
        out: The HTML file; the tables go beside it.
        classes: Thresholds of the classes of tokens.
        sweep: The sweep that they are of.
    """
    if len(runs) < 2:
        load_run(runs[0])  # What is no run is named first.
        raise InputError(f"compare needs at least two runs, got 1; report {runs[0]} shows it alone")
    _say(write_report(runs, out, classes, tables=True, sweep=sweep))


def run(command: str, arguments: list[str]) -> None:
    """Runs one of the commands.

    Args:
        command: Its name.
        arguments: What follows it on the command line.
    """
    function: Any = {"report": report, "compare": compare}[command]
    parser = ArgumentParser(prog=f"python -m lit_gamma {command}", exit_on_error=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="Directory of a run, or of a sweep.")
    parser.add_function_arguments(function, skip={"runs", "sweep"}, as_positional=False)
    asked = parser.parse_args(arguments)
    alone = asked.runs[0] if len(asked.runs) == 1 else ""
    sweep = load_sweep(alone) if alone and Path(alone, TABLE).is_file() else None
    asked.runs = [run for named in asked.runs for run in runs_of(named)]
    function(**parser.instantiate(asked), sweep=sweep)


def _say(files: list[Path]) -> None:
    for path in files:
        print(f"wrote {path}")
