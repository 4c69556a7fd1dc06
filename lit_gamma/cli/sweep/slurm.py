"""The runs of a sweep as one array job of Slurm, by submitit."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.planned import PlannedRun
from lit_gamma.cli.sweep.process import fit
from lit_gamma.errors import InputError


class Task:
    """Goes on with a run on a node; submitit queues it again when its time is up.

    Args:
        folder: The sweep's.
    """

    def __init__(self, folder: SweepFolder) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, run: PlannedRun) -> None:
        """Carries out what is left of a run."""
        # Without it Lightning counts the devices itself, and leaves Slurm's signals to submitit.
        variables = {k: v for k, v in os.environ.items() if k != "SLURM_NTASKS"}
        lock = self.folder.taken(run, wait=True)
        assert lock is not None
        with lock:
            if not self.folder.has_ended(run):
                arguments, log = self.folder.arguments(run), self.folder.log(run)
                self.process = fit(arguments, log, variables, lock)
        while self.process is not None and self.process.poll() is None:
            time.sleep(1)  # In wait() a signal's handler could not wait too.

    def checkpoint(self, run: PlannedRun) -> Any:
        """Ends the process with a checkpoint; returns what submitit queues in its place."""
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            while self.process.poll() is None:
                time.sleep(1)
        return DelayedSubmission(Task(self.folder), run)


def executor_for(folder: Path, options: Mapping[str, Any], jobs: int) -> Any:
    """The executor of submitit.

    Args:
        folder: The sweep's; its ``slurm`` has submitit's files.
        options: Parameters of submitit, ``timeout_min``, ``slurm_partition``, ...; ``cluster`` is
            ``slurm``, or ``local`` to try it out: that has no queue, and starts all runs at once.
        jobs: Runs at a time.

    Raises:
        InputError: submitit is not there, or refuses the options; or there is no Slurm.
    """
    try:
        import submitit
    except ImportError as error:
        raise InputError("--slurm needs submitit: pip install 'lit-gamma[slurm]'") from error
    given = {"cluster": "slurm", "slurm_array_parallelism": jobs, "name": "lit-gamma", **options}
    try:
        executor = submitit.AutoExecutor(folder / "slurm", cluster=given.pop("cluster"))
        executor.update_parameters(**given)
    except (RuntimeError, NameError, ValueError, TypeError, AssertionError) as error:
        raise InputError(f"--slurm: {str(error).partition(chr(10))[0]}") from error
    return executor
