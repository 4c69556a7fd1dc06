"""What a callback takes: all of it always, each of its jobs while the budget is being planned."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch


class Bill:
    """What a callback took.

    Attributes:
        seconds: Time spent in it while training, on the host; what several callbacks share is on
            the first one's bill.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._device = torch.device("cpu")
        self._times: defaultdict[str, list[float]] | None = None
        self._unwritten, self._prepared = 0, 0.0

    def start(self, device: torch.device) -> None:
        """Starts a new bill, at the start of training."""
        self.seconds = 0.0
        self._device = device

    def itemize(self, begin: bool) -> None:
        """Begins or ends to time each job by itself, which waits for the device."""
        self._times = defaultdict(list) if begin else None
        self._unwritten, self._prepared = 0, 0.0

    @contextmanager
    def billed(self, job: str) -> Iterator[None]:
        """Puts the time spent inside on the bill.

        Args:
            job: What is done: ``prepare``, ``record``, ``pictures``, ``write``, ...
        """
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        seconds = time.perf_counter() - start
        self.seconds += seconds
        if self._times is not None:
            self.add(job, seconds)

    def add(self, job: str, seconds: float) -> None:
        """Notes what a job took once.

        What it took to ``prepare`` a record is part of it, and ``write`` is shared by the records
        since the last one.
        """
        assert self._times is not None
        if job == "prepare":
            self._prepared += seconds
        elif job == "write":
            if self._unwritten:
                self._times[job].append(seconds / self._unwritten)
            self._unwritten = 0
        else:
            if job == "record":
                seconds, self._prepared = seconds + self._prepared, 0.0
                self._unwritten += 1
            self._times[job].append(seconds)

    def cost(self, job: str) -> float | None:
        """Seconds that a job takes once, the median, writing included; None if it was not done."""
        times = [] if self._times is None else self._times[job]
        if not times:
            return None
        once = median(times[1:] or times)  # The first is a warm-up.
        return once + (self.cost("write") or 0.0) if job == "record" else once

    def _wait(self) -> None:
        if self._times is not None and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
