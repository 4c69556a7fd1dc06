"""What a sweep shows while it goes on."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from lit_gamma.cli.terminal import wrapped

_TAIL = 600
"""Bytes at the end of a log that hold the last state of the bar."""


class Display:
    """A line for each run that goes on, and the time remaining; plain lines where no terminal is.

    Args:
        jobs: Runs at a time.
    """

    def __init__(self, jobs: int) -> None:
        self._off = not sys.stderr.isatty()
        self._ended = self._n_runs = 0
        self._done: dict[str, float] = {}
        form = "{desc} {bar} {elapsed}, {remaining} left"
        self._whole = tqdm(bar_format=form, dynamic_ncols=True, disable=self._off)
        self._lines = [
            tqdm(bar_format="{desc}", dynamic_ncols=True, disable=self._off, position=i + 1)
            for i in range(jobs)
        ]

    def begin(self, n_runs: int, n_ended: int) -> None:
        """Says how many runs there are, and how many of them have ended before."""
        self._n_runs, self._ended = n_runs, n_ended
        self._whole.reset(n_runs)
        self._whole.initial = n_ended
        self.say(f"{n_runs} runs, {n_ended} of them finished before")

    def say(self, line: str) -> None:
        """Prints a line that stays."""
        tqdm.write(wrapped(line, sys.stderr), file=sys.stderr)

    def count(self) -> str:
        """Counts a run that has ended; returns which one it is, ``3 of 10``."""
        self._ended += 1
        return f"{self._ended} of {self._n_runs}"

    def show(self, running: Iterable[tuple[str, Path]]) -> None:
        """Draws what goes on.

        Args:
            running: The names of runs, with their logs.
        """
        if self._off:
            return
        last = {name: last_line(log) for name, log in running}
        before = self._done
        self._done = {name: share_done(line, before.get(name, 0.0)) for name, line in last.items()}
        said = [f"  {name}  {_in_short(line, self._done[name])}" for name, line in last.items()]
        for i, bar in enumerate(self._lines):
            bar.set_description_str(said[i] if i < len(said) else "")
        self._whole.n = self._ended + sum(self._done.values())
        self._whole.set_description_str(f"{self._ended} of {self._n_runs} runs")

    def close(self) -> None:
        """Leaves the terminal as it was."""
        for bar in (*self._lines, self._whole):
            bar.close()


def last_line(log: Path) -> str:
    """What a process said last; of a bar its last state."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        said = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    return lines[-1] if lines else "starts"


def share_done(line: str, before: float) -> float:
    """The share of its steps that a run has made, by its bar; as before where there is none."""
    bar = re.match(r"step (\d+)/(\d+)", line)
    return int(bar[1]) / max(1, int(bar[2])) if bar else before


def _in_short(line: str, done: float) -> str:
    """A run's bar as it is; of what else it says only how far it must be."""
    bar = line.startswith(("step ", "Validation "))
    return line if bar else "ends" if done == 1 else "goes on" if done else "starts"
