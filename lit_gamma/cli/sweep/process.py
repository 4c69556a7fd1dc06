"""The process of one run."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def fit(
    arguments: Sequence[str], log: Path, environment: Mapping[str, str], lock: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Starts ``python -m lit_gamma fit``.

    Args:
        arguments: What follows ``fit``.
        log: The file that its output is added to.
        environment: The variables that it sees.
        lock: An open file that it inherits.
    """
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "lit_gamma", "fit", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=(lock.fileno(),),
            preexec_fn=_belong_to_the_sweep,
        )


def _belong_to_the_sweep() -> None:
    """Ctrl-C is for the sweep to hear; its own death ends the process with a checkpoint (Linux)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
