"""The command ``sweep``: a grid of ordinary runs."""

from __future__ import annotations

import math
import shlex
import signal
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lit_gamma.cli.lightning_cli import command_line
from lit_gamma.cli.sweep.display import Display
from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.grid import axes
from lit_gamma.cli.sweep.plan import FitConfigs, plan
from lit_gamma.cli.sweep.slurm import executor_for
from lit_gamma.cli.sweep.work import Work, on_a_cluster, on_this_machine
from lit_gamma.cli.terminal import tell
from lit_gamma.errors import InputError


def sweep(arguments: list[str]) -> None:
    """Carries out what is left of a sweep, and says what it came to.

    Args:
        arguments: What follows ``sweep`` on the command line.

    Raises:
        InputError: Something asked for cannot be; nothing was started then.
    """
    asked, shared = _parser().parse_known_args(arguments)
    if not asked.config:
        raise InputError("sweep needs a config: --config configs/anchor.yaml")
    for name in ("jobs", "seeds"):
        if getattr(asked, name) < 1:
            raise InputError(f"--{name} must be at least 1, got {getattr(asked, name)}")
    out = asked.out or Path("runs", f"{Path(asked.config[-1]).stem}-sweep")
    grid, options = axes(asked.grid), _pairs(asked.slurm)
    n_runs = asked.seeds * math.prod(len(values) for values in grid.values())
    tell(f"checking the configs of {n_runs} runs")
    shared = [*(f"--config={path}" for path in asked.config), *shared]
    fits = command_line(FitConfigs, ["fit", *shared])
    assert isinstance(fits, FitConfigs)
    folder = SweepFolder(out, plan(fits, shared, grid, asked.seeds, out))
    folder.refuse_another(fits.base, fits.read_saved)
    executor = None if options is None else executor_for(out, options, asked.jobs)
    again = f"{_parser().prog} {shlex.join(arguments)}"
    with folder.held(fits.base):
        carry_out(folder, asked.jobs, executor, again)
    _tell_end(folder)


def carry_out(folder: SweepFolder, jobs: int, executor: Any, again: str) -> None:
    """Makes the runs that are left of a sweep whose folder is held.

    Args:
        folder: The sweep's.
        jobs: Runs at a time.
        executor: Of submitit; None for processes of this machine.
        again: The command that goes on with it.
    """
    display = Display(jobs)
    work = Work(folder, display)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if executor is None:
            on_this_machine(work, jobs)
        else:
            on_a_cluster(work, executor)
    except KeyboardInterrupt:
        display.say(f"go on with: {again}")
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)
        folder.write_table()
        display.close()


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _tell_end(folder: SweepFolder) -> None:
    print(f"  table        {folder.path / 'sweep.csv'}")
    print(f"  compare      python -m lit_gamma compare {folder.path}")
    print(f"  look at it   tensorboard --logdir {folder.path} --samples_per_plugin images=100")
    if folder.failures:
        failed = ", ".join(folder.failures)
        raise InputError(f"{len(folder.failures)} of {len(folder.runs)} runs failed: {failed}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m lit_gamma sweep",
        usage="%(prog)s --config FILE --grid KEY=VALUE,VALUE ... [--seeds N] [--jobs N] "
        "[--out FOLDER] [--slurm [KEY=VALUE ...]] [--OPTION VALUE ...]",
        description="Make a run for every combination of a grid and every seed, each a process of "
        "its own. Finished runs are not repeated: the same command goes on with what is left.",
        epilog="Any other option is one of fit, and holds for all runs.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="FILE", help="as for fit")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="a key of the config and its values; once for each key",
    )
    add("--seeds", type=int, default=1, metavar="N", help="runs of each combination (default: 1)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--out", type=Path, help="the sweep's folder (default: runs/<config's name>-sweep)")
    add(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="one array job, with these parameters of submitit: timeout_min=600 ...",
    )
    return parser


def _pairs(written: list[str] | None) -> dict[str, Any] | None:
    if written is None:
        return None
    for pair in written:
        if not all(pair.partition("=")):
            raise InputError(f"--slurm {pair}: give KEY=VALUE")
    return {key: yaml.safe_load(value) for key, _, value in (p.partition("=") for p in written)}
