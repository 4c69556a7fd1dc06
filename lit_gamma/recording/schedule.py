"""When a callback runs, as a value in the config."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_gamma.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """The optimizer steps at which something is recorded; step 0 always is.

    Attributes:
        every: Every that many steps; 0 for no regular steps.
        per_decade: Log-spaced steps, that many per factor of ten; 0 for none.
        dense_until: Every step up to and including this one.
    """

    every: int = 0
    per_decade: int = 0
    dense_until: int = 0

    def __post_init__(self) -> None:
        if min(self.every, self.per_decade, self.dense_until) < 0:
            raise InputError(f"a schedule's numbers must not be negative, got {self}")

    def due(self, step: int) -> bool:
        """Whether ``step`` belongs to the schedule."""
        if step <= self.dense_until or (self.every and step % self.every == 0):
            return True
        return self.per_decade > 0 and self._log_spaced(step)

    def count(self, last_step: int) -> int:
        """Number of steps of the schedule from 0 up to and including ``last_step``."""
        dense = min(self.dense_until, last_step)
        regular = last_step // self.every - dense // self.every if self.every else 0
        decades = math.log10(max(last_step, 1))
        powers = {self._power(e) for e in range(math.ceil(decades * self.per_decade) + 1)}
        spaced = {p for p in powers if dense < p <= last_step} if self.per_decade else set()
        return 1 + dense + regular + sum(not self.every or p % self.every != 0 for p in spaced)

    def _log_spaced(self, step: int) -> bool:
        exponent = round(math.log10(step) * self.per_decade)
        return step in {self._power(e) for e in (exponent - 1, exponent, exponent + 1)}

    def _power(self, exponent: int) -> int:
        return round(10 ** (exponent / self.per_decade)) if self.per_decade else 0
