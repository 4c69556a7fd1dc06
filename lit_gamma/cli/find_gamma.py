"""The command ``find-gamma``: short runs over γ, and which loses nothing."""

from __future__ import annotations

import logging
import shlex
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path

import torch
from lightning import LightningDataModule
from typing_extensions import override

from lit_gamma.cli.lightning_cli import LitGammaCLI, command_line, examine
from lit_gamma.cli.sweep.command import carry_out
from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.grid import axes
from lit_gamma.cli.sweep.plan import FitConfigs, plan
from lit_gamma.cli.sweep.planned import Config
from lit_gamma.cli.terminal import tell, wrapped
from lit_gamma.comparison.gamma_page import write_choice
from lit_gamma.comparison.sweep_runs import GAMMA, RATE, load_sweep
from lit_gamma.doctor.diagnosis import Diagnosis
from lit_gamma.errors import InputError

PROGRAM = "python -m lit_gamma find-gamma"


class Examination(LitGammaCLI):
    """The doctor's, of a config; prints nothing."""

    diagnosis: Diagnosis

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``doctor`` alone."""
        return {"doctor": {"model", "datamodule"}}

    @override
    def _set_seed(self) -> None:
        torch.manual_seed(self._get(self.config, "seed_everything"))

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        self.diagnosis = examine(self.model, self.datamodule)


def find_gamma(arguments: list[str]) -> None:
    """Tries γ in short runs, and says which loses nothing.

    Args:
        arguments: What follows ``find-gamma`` on the command line.

    Raises:
        InputError: Something asked for cannot be; nothing was started then. Or a run failed.
    """
    asked, rest = _parser().parse_known_args(arguments)
    gammas, rates = _checked(asked)
    tell(f"examining γ {', '.join(gammas)}")
    out = asked.out or Path("runs", f"{Path(asked.config[-1]).stem}-find-gamma")
    shared = [*(f"--config={path}" for path in asked.config), *_shortened(asked.steps), *rest]
    fits = command_line(FitConfigs, ["fit", *shared])
    assert isinstance(fits, FitConfigs)
    _refuse_warm_up_alone(fits.base, asked.steps)
    fits.check()
    tried, left_out, data = _examined(shared, gammas)
    folder = SweepFolder(out, plan(fits, shared, {GAMMA: tried, **rates}, asked.seeds, out))
    folder.refuse_another(fits.base, fits.read_saved)
    with folder.held(fits.base):
        carry_out(folder, asked.jobs, None, f"{PROGRAM} {shlex.join(arguments)}")
    if folder.failures:
        raise InputError(f"{len(folder.failures)} runs failed: {', '.join(folder.failures)}")
    loss, reasoning = (getattr(data, n, None) for n in ("validation_loss", "reasoning_measure"))
    path, said = write_choice(load_sweep(out), loss, reasoning, left_out)
    print("", *(wrapped(f"  {line}", sys.stdout) for line in said), f"wrote {path}", sep="\n")


def _checked(asked: Namespace) -> tuple[list[str], dict[str, list[str]]]:
    """The γ and the learning rates that are asked for."""
    if not asked.config:
        raise InputError("find-gamma needs a config: --config configs/anchor.yaml")
    for name in ("jobs", "seeds", "steps"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, got {value}")
    rates = axes(asked.grid) if asked.grid else {}
    if other := [key for key in rates if key != RATE]:
        raise InputError(f"--grid {other[0]}: find-gamma varies γ and {RATE}; sweep varies others")
    return gammas_of(asked.range), rates


def _refuse_warm_up_alone(config: Config, steps: int | None) -> None:
    warm_up = config["model"]["optimizer"]["warmup_steps"]
    if steps is not None and steps <= warm_up:
        raise InputError(
            f"--steps {steps} ends within the warm-up of {warm_up} steps: give more steps, or "
            "--model.optimizer.warmup_steps"
        )


def gammas_of(written: str) -> list[str]:
    """The γ of a range ``LOW,HIGH`` or ``LOW,HIGH,STEP``; the step is 0.1 if it is not given.

    Raises:
        InputError: It is no range, or has fewer than two γ.
    """
    try:
        parts = written.split(",")
        low, high, step = map(Decimal, parts if len(parts) == 3 else [*parts, "0.1"])
        n = int((high - low) / step) + 1
        fits = low >= 0 and step > 0 and 2 <= n <= 100
    except (ValueError, ArithmeticError, InvalidOperation):
        fits = False
    if not fits:
        raise InputError(f"--range {written}: give LOW,HIGH or LOW,HIGH,STEP, as 0.4,1.2,0.1")
    return [format((low + i * step).normalize(), "f") for i in range(n)]


def _shortened(steps: int | None) -> list[str]:
    if steps is None:
        return []
    return [f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={max(1, steps // 10)}"]


def _examined(
    shared: list[str], gammas: list[str]
) -> tuple[list[str], list[str], LightningDataModule]:
    """The γ that the doctor lets pass, why others are not tried, and the data."""
    passed, left_out, data = [], [], None
    for gamma in gammas:
        reason = ""
        try:
            with _devices_unsaid():
                seen = command_line(Examination, ["doctor", *shared, f"--{GAMMA}={gamma}"])
            assert isinstance(seen, Examination)
            data = seen.datamodule
            reason = "; ".join(bars(seen.diagnosis))
        except InputError as error:
            reason = str(error)
        if reason:
            left_out.append(f"γ {gamma} is not tried: {reason}")
            print(wrapped(left_out[-1], sys.stderr), file=sys.stderr)
        else:
            passed.append(gamma)
    if len(passed) < 2 or data is None:
        raise InputError(f"the doctor lets {len(passed)} of {len(gammas)} γ pass; two are needed")
    return passed, left_out, data


@contextmanager
def _devices_unsaid() -> Iterator[None]:
    """Lightning does not say, once for every γ, which devices there are."""
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


def bars(diagnosis: Diagnosis) -> list[str]:
    """What keeps a γ from being tried: saturated norms, and weights that are not as drawn."""
    return [f.what for f in diagnosis.findings if f.kind in ("saturated norms", "not as drawn")]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s --config FILE [--range LOW,HIGH[,STEP]] [--steps N] [--seeds N] "
        "[--grid model.optimizer.lr=VALUE,VALUE] [--jobs N] [--out FOLDER] [--OPTION VALUE ...]",
        description="Try γ in runs that the doctor has examined; say where validation loss and "
        "reasoning are best, and which γ lose neither. The same command goes on with what is left.",
        epilog="Any other option is one of fit, and holds for all runs.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("-c", "--config", action="append", default=[], metavar="FILE", help="as for fit")
    add(
        "--range", default="0.4,1.2", metavar="LOW,HIGH[,STEP]", help="the γ (default: 0.4,1.2,0.1)"
    )
    add("--steps", type=int, metavar="N", help="optimizer steps of a run (default: the config's)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each γ (default: 3)")
    add("--grid", action="append", default=[], metavar="KEY=VALUE,VALUE", help="learning rates")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    add("--out", type=Path, help="the folder (default: runs/<config's name>-find-gamma)")
    return parser
