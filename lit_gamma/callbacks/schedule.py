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

    def _log_spaced(self, step: int) -> bool:
        exponent = round(math.log10(step) * self.per_decade)
        return step in {
            round(10 ** (e / self.per_decade)) for e in (exponent - 1, exponent, exponent + 1)
        }
