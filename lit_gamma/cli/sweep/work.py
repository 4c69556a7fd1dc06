"""What is left of a sweep, and who carries it out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from lit_gamma.cli.sweep.display import Display, last_line
from lit_gamma.cli.sweep.folder import SweepFolder
from lit_gamma.cli.sweep.planned import PlannedRun
from lit_gamma.cli.sweep.pool import Pool
from lit_gamma.cli.sweep.slurm import Task
from lit_gamma.comparison.sweep_table import summary_of

_LOOK_EVERY, _WRITE_EVERY = 0.25, 15.0  # Seconds.


class Work:
    """What is left of a sweep; says what becomes of it, and keeps the table.

    Args:
        folder: The sweep's.
        display: Where to say it.

    Attributes:
        waiting: The runs that have to begin, or to go on.
    """

    def __init__(self, folder: SweepFolder, display: Display) -> None:
        self.folder = folder
        self.display = display
        self.waiting = folder.left()
        self._broken: set[str] = set()
        self._written = 0.0
        n_runs, n_left = len(folder.runs), len(self.waiting)
        display.begin(n_runs, n_runs - n_left)
        self.write()

    def over(self, run: PlannedRun) -> None:
        """Says what a run whose process has ended came to; one that broke waits once more."""
        log = self.folder.log(run)
        if self.folder.has_ended(run):
            self.folder.failures.pop(run.name, None)
            self.display.say(f"{self.display.count()}: {run.name} {self._came_to(run)}")
        else:
            reason = last_line(log).removeprefix("error: ")
            self.folder.failures[run.name] = reason
            if run.name in self._broken:
                again = f"{run.name} failed again: {reason} ({log})"
                self.display.say(f"{self.display.count()}: {again}")
            else:
                self._broken.add(run.name)
                self.waiting.append(run)
                self.display.say(f"{run.name} failed: {reason} ({log}); it is tried once more")
        self.write()

    def show(self, running: Sequence[PlannedRun]) -> None:
        """Draws what goes on, and lets some time pass."""
        if time.monotonic() > self._written + _WRITE_EVERY:
            self.write()
        self.display.show([(run.name, self.folder.log(run)) for run in running])
        time.sleep(_LOOK_EVERY)

    def write(self) -> None:
        """Writes the table."""
        self.folder.write_table()
        self._written = time.monotonic()

    def _came_to(self, run: PlannedRun) -> str:
        at = self.folder.where(run)
        assert at is not None
        summary = summary_of(at)
        metrics = [
            f"{name} {float(value):.4g}"
            for name, value in summary["metrics"].items()
            if not name.endswith("perplexity")
        ]
        return ", ".join([f"{summary['status']} in {summary['seconds']:.0f} s", *metrics])


def on_this_machine(work: Work, jobs: int) -> None:
    """Carries out a sweep by processes of this machine.

    Args:
        work: The sweep.
        jobs: Runs at a time.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs have ended, each with a checkpoint.
    """
    pool = Pool(work.folder, jobs)
    try:
        while work.waiting or pool.running:
            for run in list(work.waiting):
                lock = None if pool.is_full else work.folder.taken(run)
                if lock is None:  # Or another process is at this run.
                    continue
                with lock:
                    work.waiting.remove(run)
                    if work.folder.has_ended(run):
                        work.over(run)
                    else:
                        pool.start(run, lock)
            for run in pool.ended():
                work.over(run)
            work.show(pool.running)
    except KeyboardInterrupt:
        work.display.say("ending the runs, each with a checkpoint; Ctrl-C again does not wait")
        pool.stop()
        raise


def on_a_cluster(work: Work, executor: Any) -> None:
    """Carries out a sweep as an array job, and waits for it.

    Args:
        work: The sweep.
        executor: Of submitit.

    Raises:
        KeyboardInterrupt: Ctrl-C; the array job goes on.
    """
    while runs := work.waiting:
        work.waiting = []
        array = dict(enumerate(executor.map_array(Task(work.folder), runs)))
        name = array[0].job_id.partition("_")[0]
        work.display.say(f"{len(runs)} runs are queued as job {name}; Ctrl-C leaves them there")
        while array:
            for i in [i for i, job in array.items() if job.done()]:
                del array[i]
                work.over(runs[i])
            work.show([runs[i] for i in array if work.folder.log(runs[i]).is_file()])
