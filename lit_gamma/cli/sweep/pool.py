"""A few runs at a time on this machine, each a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO

import torch

from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.planned import PlannedRun
from lit_gamma.cli.sweep.process import fit


class Pool:
    """Processes of a sweep's runs, at most so many at a time.

    Several divide the processor's threads (OMP_NUM_THREADS, unless it is set), and have a GPU each
    where there are several (CUDA_VISIBLE_DEVICES). A single one has all, as it would by itself.

    Args:
        folder: The sweep's.
        size: The most at a time.
    """

    def __init__(self, folder: SweepFolder, size: int) -> None:
        self.folder = folder
        self.size = size
        self._running: dict[int, tuple[PlannedRun, subprocess.Popen[bytes]]] = {}

    @property
    def running(self) -> list[PlannedRun]:
        """What goes on."""
        return [run for run, _ in self._running.values()]

    @property
    def is_full(self) -> bool:
        """Whether no other can start."""
        return len(self._running) == self.size

    def start(self, run: PlannedRun, lock: IO[bytes]) -> None:
        """Begins a run, or goes on with it.

        Args:
            run: The run.
            lock: The file by which it is taken, see :meth:`SweepFolder.taken`.
        """
        place = next(i for i in range(self.size) if i not in self._running)
        arguments, log = self.folder.arguments(run), self.folder.log(run)
        self._running[place] = run, fit(arguments, log, environment(place, self.size), lock)

    def ended(self) -> list[PlannedRun]:
        """The runs whose processes have ended since it was last asked."""
        over = {i: run for i, (run, process) in self._running.items() if process.poll() is not None}
        for place in over:
            del self._running[place]
        return list(over.values())

    def stop(self) -> None:
        """Ends all of them, each with a checkpoint; a second Ctrl-C does not wait for that."""
        processes = [process for _, process in self._running.values()]
        try:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        except KeyboardInterrupt:
            for process in processes:
                process.kill()
                process.wait()


def environment(place: int, size: int) -> dict[str, str]:
    """The variables that one of several processes sees.

    Args:
        place: Its number among those that run together.
        size: How many they are.
    """
    variables = dict(os.environ)
    if size == 1:
        return variables
    variables.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // size)))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = listed.split(",") if listed else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) > 1:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    return variables


def n_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
