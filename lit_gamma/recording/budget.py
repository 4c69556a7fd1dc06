"""What a callback may cost: measured over the first steps, planned for the whole run."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

import torch

from lit_gamma.errors import InputError
from lit_gamma.recording.schedule import Schedule

if TYPE_CHECKING:
    from lit_gamma.recording.run import Run

WARMUP_STEPS = 2
"""First optimizer steps, whose times do not count: compilation, allocation."""

CALIBRATION_STEPS = 8
"""Optimizer steps after them over which training and recording are timed."""

_UNKNOWN_HORIZON = 100_000  # Steps assumed for a run that does not say how long it is.


class Calibration:
    """Times optimizer steps, and what one callback does in them.

    Attributes:
        step: The last optimizer step that was timed.
        step_seconds: Duration of each optimizer step so far, without trajectory callbacks.
    """

    def __init__(self) -> None:
        self.step = -1
        self.step_seconds: list[float] = []
        self._job_seconds: defaultdict[str, list[float]] = defaultdict(list)
        self._unwritten = 0
        self._last: tuple[float, float] | None = None

    @property
    def warm(self) -> bool:
        """Whether the warm-up has just ended."""
        return len(self.step_seconds) == WARMUP_STEPS

    @property
    def done(self) -> bool:
        """Whether enough steps were timed."""
        return len(self.step_seconds) >= WARMUP_STEPS + CALIBRATION_STEPS

    @property
    def training(self) -> float:
        """Seconds of one optimizer step without recording, the median."""
        return median(self.step_seconds[WARMUP_STEPS:])

    def end_step(self, step: int, recording: float) -> None:
        """Notes the end of an optimizer step.

        Args:
            step: Optimizer steps taken.
            recording: Seconds that trajectory callbacks took so far, in all.
        """
        self.step = step
        now = time.perf_counter()
        if self._last is not None:
            self.step_seconds.append(now - self._last[0] - (recording - self._last[1]))
        self._last = now, recording

    def add(self, job: str, seconds: float) -> None:
        """Notes what a job took once; ``write`` is shared by the records since the last one."""
        if job == "write":
            if self._unwritten:
                self._job_seconds[job].append(seconds / self._unwritten)
            self._unwritten = 0
        else:
            self._job_seconds[job].append(seconds)
            self._unwritten += job == "record"

    def cost(self, job: str) -> float:
        """Seconds that a job takes once, the median, writing included; the first is a warm-up."""
        times = self._job_seconds[job]
        once = median(times[1:] or times or [0.0])
        return once + self.cost("write") if job == "record" else once


class Plan:
    """What a calibrated callback will cost over a run.

    Args:
        calibration: The times of the first steps.
        jobs: What the callback does, and at which steps.
        total_steps: Optimizer steps of the whole run; infinite if that is not known.
        overhead: What the callback may cost in all, as a share of training without it.
    """

    def __init__(
        self,
        calibration: Calibration,
        jobs: Mapping[str, Schedule],
        total_steps: float,
        overhead: float,
    ) -> None:
        self.overhead = overhead
        self.horizon = int(total_steps) if math.isfinite(total_steps) else _UNKNOWN_HORIZON
        self.calibration = calibration
        self.counts = {job: schedule.count(self.horizon) for job, schedule in jobs.items()}
        self.training = calibration.training * self.horizon

    @property
    def shares(self) -> dict[str, float]:
        """Cost of each job, as a share of training without it."""
        return {
            job: count * self.calibration.cost(job) / self.training
            for job, count in self.counts.items()
        }

    def matrices_per_step(self, n_matrices: int) -> float:
        """How many matrices can take turns at each step that records not all of them.

        Args:
            n_matrices: Number of matrices; the job ``record`` measures all of them.

        Returns:
            A power of two, at most ``n_matrices``. Where the other jobs leave nothing over it is
            what a quarter of the budget affords: short runs need values between their schedules.
        """
        spare = max(self.overhead - sum(self.shares.values()), self.overhead / 4) * self.training
        turns = max(1, self.horizon + 1 - self.counts["record"])
        affordable = spare * n_matrices / (self.calibration.cost("record") * turns)
        # A power of two, so that it hardly depends on the noise of the calibration.
        return min(n_matrices, 2.0 ** math.floor(math.log2(affordable)))

    def warning(self, name: str) -> str | None:
        """What to say if the schedules alone cost more than the budget."""
        share = sum(self.shares.values())
        if share <= self.overhead:
            return None
        dearest = max(self.shares, key=self.shares.__getitem__)
        key = "schedule" if dearest == "record" else dearest
        return (
            f"{name} will take about {share:.1%} on top of training, over its budget of "
            f"{self.overhead:.1%}; most of it is '{dearest}' at {self.counts[dearest]} of "
            f"{self.horizon + 1} steps. Set a sparser {key}, or raise its overhead to "
            f"{math.ceil(share * 100) / 100}"
        )


class Budget:
    """The bill of a callback, and its limit if it has one.

    Args:
        overhead: What the callback may cost, as a share of the time of training without it; None
            for no limit.

    Attributes:
        seconds: Time spent in the callback while training, on the host; what several callbacks
            share is on the first one's bill.
    """

    def __init__(self, overhead: float | None = None) -> None:
        if overhead is not None and not 0 < overhead < math.inf:
            raise InputError(
                f"overhead must be a positive share of a training step, such as 0.01 for one "
                f"percent, or null for no limit; got {overhead}"
            )
        self.overhead = overhead
        self.seconds = 0.0
        self._device = torch.device("cpu")
        self._calibration: Calibration | None = None

    def start(self, device: torch.device) -> None:
        """Starts a new bill, at the start of training."""
        self.seconds = 0.0
        self._device = device
        self._calibration = None if self.overhead is None else Calibration()

    def end_step(
        self, run: Run, jobs: Mapping[str, Schedule], write: Callable[[], None]
    ) -> Plan | None:
        """Times an optimizer step that just ended, if that is still to be done.

        Args:
            run: The run.
            jobs: What the callback does, and at which steps.
            write: Writes what waits, so that writing is timed too.

        Returns:
            What the callback will cost, after the last of the steps that are timed.
        """
        calibration = self._calibration
        if calibration is None or run.step == calibration.step:
            return None
        calibration.end_step(run.step, run.recording_seconds)
        if calibration.warm or calibration.done:
            write()
        if not calibration.done:
            return None
        assert self.overhead is not None
        self._calibration = None
        return Plan(calibration, jobs, run.total_steps, self.overhead)

    @contextmanager
    def billed(self, job: str) -> Iterator[None]:
        """Adds the time spent inside to :attr:`seconds`; calibrating, waits for the device."""
        self._wait_if_calibrating()
        start = time.perf_counter()
        yield
        if self._calibration is not None:
            self._wait_if_calibrating()
            self._calibration.add(job, time.perf_counter() - start)
        self.seconds += time.perf_counter() - start

    def _wait_if_calibrating(self) -> None:
        if self._calibration is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
