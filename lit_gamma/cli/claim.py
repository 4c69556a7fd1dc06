"""The command ``claim``: which claims there are, and what is asked of one."""

from __future__ import annotations

import shlex
import sys
from argparse import ArgumentParser
from pathlib import Path

from lit_gamma.cli.known_claims import file_of_claim, listed
from lit_gamma.cli.terminal import wrapped
from lit_gamma.errors import InputError

PROGRAM = "python -m lit_gamma claim"


def claim(arguments: list[str]) -> None:
    """Makes what is missing of a claim's runs, and says what they say of it; or lists all claims.

    Args:
        arguments: What follows ``claim`` on the command line.

    Raises:
        InputError: Something asked for cannot be; nothing was started then. Or a run failed.
    """
    asked, rest = _parser().parse_known_args(arguments)
    if asked.claim is None:
        lines = (f"{PROGRAM} CLAIM [--preset smoke|cpu|gpu] [--jobs N]", *listed())
        print(wrapped("\n".join(lines), sys.stdout))
        return
    if asked.jobs < 0:
        raise InputError(f"--jobs must be at least 0, got {asked.jobs}")
    file = file_of_claim(asked.claim)
    from lit_gamma.cli.claim_runs import make  # Takes seconds, which a list need not.

    again = f"{PROGRAM} {shlex.join(arguments)}"
    make(file, asked.preset, asked.jobs, asked.out, rest, again)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog=PROGRAM,
        usage="%(prog)s [CLAIM] [--preset smoke|cpu|gpu] [--jobs N] [--out FOLDER] [--FILE PATH]",
        description="Make what is missing of a claim's runs, measure, and say whether it holds. "
        "The same command goes on with what is left. Without a claim: list them.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("claim", nargs="?", help="C1 ... C7, D1, or one of your configs/claims/")
    add("--preset", default="cpu", help="which size of it (default: cpu)")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time; 0: the verdict so far")
    add("--out", type=Path, default=Path("runs", "claims"), help="(default: runs/claims)")
    return parser
