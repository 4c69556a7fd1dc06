"""What recording may cost: timed over the first steps, planned for the whole run, one number."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from lit_gamma.errors import InputError
from lit_gamma.recording.schedule import Schedule

if TYPE_CHECKING:
    from lit_gamma.recording.callback import TrajectoryCallback
    from lit_gamma.recording.run import Run

WARMUP_STEPS = 2
"""First optimizer steps, whose times do not count: compilation, allocation."""

CALIBRATION_STEPS = 8
"""Optimizer steps after them over which training and recording are timed."""

LEFT_FOR_TURNS = 0.1
"""Share of what may still be spent that is kept for matrices that take turns."""

_UNKNOWN_HORIZON = 100_000  # Steps assumed for a run that does not say how long it is.
_FEWEST = {1: 20, 4: 10, 8: 2}  # Records that a job keeps in any case, by its weight.


@dataclass(frozen=True)
class Share:
    """What the budget leaves to a callback.

    Attributes:
        overhead: The budget of the run it was made for; None if for none.
        strides: Job to k, where it is done at every k-th step of its schedule alone.
        matrices_per_step: How many matrices take turns between the steps of the schedule.
    """

    overhead: float | None = None
    strides: dict[str, int] = field(default_factory=dict)
    matrices_per_step: float = 0.0

    def due(self, job: str, schedule: Schedule, step: int) -> bool:
        """Whether a job of a schedule is due at a step."""
        stride = self.strides.get(job, 1)
        return schedule.due(step) and (stride == 1 or (schedule.count(step) - 1) % stride == 0)


@dataclass
class Job:
    """What a callback does at the steps of a schedule, for the rest of a run.

    Attributes:
        callback: Name of the callback.
        job: What it does.
        times: How often the schedule asks for it.
        cost: Seconds, once.
        weight: Its seconds count so many times where something has to be left out: those of what
            is recorded at every step once, other records four times, pictures eight times.
        stride: It is done every so many times.
    """

    callback: str
    job: str
    times: int
    cost: float
    weight: int
    stride: int = 1

    @property
    def seconds(self) -> float:
        """What it takes in all."""
        return self.cost * self.times / self.stride

    @property
    def can_be_rarer(self) -> bool:
        """Whether half as many would still be some."""
        return self.times // (2 * self.stride) >= _FEWEST[self.weight]


@dataclass(frozen=True)
class Turns:
    """The matrices that take turns in a callback.

    Attributes:
        callback: Name of the callback.
        n_matrices: How many there are.
        cost: Seconds to measure all of them.
    """

    callback: str
    n_matrices: int
    cost: float

    def per_step(self, seconds: float, steps: float) -> float:
        """How many can take turns at each of so many steps, in so many seconds: a power of two.

        So that it hardly depends on the noise of the calibration.
        """
        if seconds <= 0 or self.cost <= 0:
            return 0.0
        affordable = seconds * self.n_matrices / (self.cost * max(1.0, steps))
        return min(self.n_matrices, 2.0 ** math.floor(math.log2(affordable)))


def divide(
    left: float, steps: float, jobs: Sequence[Job], turns: Sequence[Turns]
) -> dict[str, float]:
    """Divides what may still be spent: makes jobs rarer until they fit, and gives turns the rest.

    As long as it is too much, the job that takes most is halved, weighted by :attr:`Job.weight`.

    Args:
        left: Seconds that may still be spent.
        steps: Optimizer steps to come.
        jobs: The jobs; their strides are set.
        turns: Who takes turns; they share alike.

    Returns:
        Name of the callback to its matrices per step.
    """
    kept = left * (LEFT_FOR_TURNS if turns else 0.0)
    while sum(job.seconds for job in jobs) > left - kept:
        rarer = [job for job in jobs if job.can_be_rarer and job.cost > 0]
        if not rarer:
            break
        max(rarer, key=lambda job: job.weight * job.seconds).stride *= 2
    rest = left - sum(job.seconds for job in jobs)
    return {of.callback: of.per_step(rest / len(turns), steps) for of in turns}


class Budget:
    """The one limit of all recording of a run.

    After :data:`WARMUP_STEPS` and :data:`CALIBRATION_STEPS` it says what every callback may do for
    the rest of the run, by the times of these steps, so that all together take the given share of
    the time of training. What does not fit is done every second, fourth, ... time.

    Args:
        overhead: What recording may cost in all, as a share of the time of training without it;
            None for no limit.
    """

    def __init__(self, overhead: float | None = None) -> None:
        if overhead is not None and not 0 < overhead < math.inf:
            raise InputError(
                f"overhead must be a positive share of a training step, such as 0.05 for five "
                f"percent, or null for no limit; got {overhead}"
            )
        self.overhead = overhead
        self._calibrating = False
        self._step = -1
        self._step_seconds: list[float] = []
        self._last: tuple[float, float] | None = None

    def start(self, run: Run) -> None:
        """Begins to time the callbacks, unless a checkpoint says what they may do."""
        settled = all(callback.share.overhead == self.overhead for callback in run.callbacks)
        self._calibrating = self.overhead is not None and not settled
        for callback in run.callbacks:
            if not settled:
                callback.share = Share()
            callback.bill.itemize(self._calibrating)

    def end_step(self, run: Run) -> None:
        """Times an optimizer step that just ended; after the last of these, plans the rest."""
        if not self._calibrating or run.step == self._step:
            return
        self._step, now, recording = run.step, time.perf_counter(), run.recording_seconds
        if self._last is not None:
            self._step_seconds.append(now - self._last[0] - (recording - self._last[1]))
        self._last = now, recording
        if len(self._step_seconds) not in (WARMUP_STEPS, WARMUP_STEPS + CALIBRATION_STEPS):
            return
        for callback in run.callbacks:
            callback.write()
        if len(self._step_seconds) > WARMUP_STEPS:
            self._plan(run)

    def _plan(self, run: Run) -> None:
        assert self.overhead is not None
        horizon = int(run.total_steps) if math.isfinite(run.total_steps) else _UNKNOWN_HORIZON
        training = median(self._step_seconds[WARMUP_STEPS:]) * max(horizon, run.step)
        steps = horizon - run.step
        jobs = [job for callback in run.callbacks for job in _jobs_of(callback, run.step, horizon)]
        turns = [of for callback in run.callbacks if (of := callback.turns()) is not None]
        spent = run.recording_seconds
        per_step = divide(self.overhead * training - spent, steps, jobs, turns)
        of_turns = sum(per_step[of.callback] * steps * of.cost / of.n_matrices for of in turns)
        used = (spent + sum(job.seconds for job in jobs) + of_turns) / training
        words = in_words(self.overhead, used, jobs, per_step)
        shares = {c.name: self._share(c.name, jobs, per_step) for c in run.callbacks}
        shares = run.agree(shares)  # By rank 0's times.
        self._calibrating = False
        for callback in run.callbacks:
            callback.bill.itemize(False)
            callback.share = shares[callback.name]
        run.say(words)

    def _share(self, name: str, jobs: Sequence[Job], per_step: Mapping[str, float]) -> Share:
        strides = {job.job: job.stride for job in jobs if job.callback == name and job.stride > 1}
        return Share(self.overhead, strides, per_step.get(name, 0.0))


def _jobs_of(callback: TrajectoryCallback, step: int, horizon: int) -> Iterator[Job]:
    """What a callback does after a step, as far as it is known what that costs."""
    for name, schedule in callback.schedules.items():
        times = schedule.count(horizon) - schedule.count(step)
        cost = callback.bill.cost(name) or callback.expected_seconds.get(name)
        weight = 8 if name == "pictures" else 1 if schedule.every == 1 else 4
        if cost is not None and times > 0:
            yield Job(callback.name, name, times, cost, weight)


def in_words(
    overhead: float, used: float, jobs: Sequence[Job], per_step: Mapping[str, float]
) -> str:
    """Says what is recorded how often, and what it takes.

    Args:
        overhead: The budget.
        used: What recording will take, as the same share.
        jobs: The jobs, with their strides.
        per_step: Name of a callback to its matrices per step.
    """
    over = f", over its budget of {overhead:.1%}" if used > 1.1 * overhead else ""
    parts = "; ".join((*_records_in_words(jobs), *_turns_in_words(per_step)))
    remedy = "; record less, or raise overhead" if over else ""
    told = f": {parts}" if parts else ""
    return f"recording will take about {used:.1%} of training{over}{told}{remedy}"


def _records_in_words(jobs: Sequence[Job]) -> Iterator[str]:
    by_pace: dict[str, list[str]] = {}
    for job in jobs:
        what = job.callback if job.job == "record" else f"{job.job} of {job.callback}"
        if job.weight == 1:
            pace = "at every step" if job.stride == 1 else f"every {job.stride} steps"
        else:
            pace = f"at one in {job.stride} of the scheduled steps" if job.stride > 1 else ""
        if pace:
            by_pace.setdefault(pace, []).append(what)
    yield from (f"{', '.join(names)} {pace}" for pace, names in by_pace.items())


def _turns_in_words(per_step: Mapping[str, float]) -> Iterator[str]:
    for name, n in per_step.items():
        if n >= 1:
            yield f"{name} of {n:g} {'matrix' if n == 1 else 'matrices'} a step"
        elif n > 0:
            yield f"{name} of a matrix every {1 / n:g} steps"
