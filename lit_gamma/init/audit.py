"""What an initialization did: realised against expected std, and what was not a plain draw."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NAMES_SHOWN = 4


@dataclass(frozen=True)
class AuditRow:
    """One matrix after initialization.

    Attributes:
        name: Its name, see :class:`lit_gamma.NeuronMatrix`.
        role: Its role, see :data:`lit_gamma.weights.neurons.ROLES`.
        shape: (n_neurons, d_in).
        gamma: The initialization rate that was applied; of a given std, the one that gives it at
            this d_in (infinite where d_in is 1).
        expected_std: Standard deviation of the rule.
        realised_std: Root mean square of the entries drawn, in float64; NaN on the meta device.
    """

    name: str
    role: str
    shape: tuple[int, int]
    gamma: float
    expected_std: float
    realised_std: float

    @property
    def deviation(self) -> float:
        """(realised - expected) in units of its standard error, expected_std / sqrt(2 n d)."""
        error = self.expected_std / math.sqrt(2 * math.prod(self.shape))
        return (self.realised_std - self.expected_std) / error


class Audit(tuple[AuditRow, ...]):
    """The rows of an initialization; ``print(audit)`` shows them as a table.

    Attributes:
        notes: What is not a plain draw, and the parameters it is true of: left alone because
            frozen, drawn though not recognised, ...
        std: The std that was given in place of γ, if any.
        source: The folder that the weights are taken from, if none was drawn.
    """

    notes: Mapping[str, tuple[str, ...]]
    std: float | None
    source: str | None

    def __new__(
        cls,
        rows: Iterable[AuditRow] = (),
        notes: Mapping[str, Iterable[str]] | None = None,
        std: float | None = None,
        source: str | None = None,
    ) -> Audit:
        """Makes an audit of rows and notes."""
        audit = super().__new__(cls, rows)
        audit.std = std
        audit.source = source
        audit.notes = {note: tuple(names) for note, names in (notes or {}).items()}
        return audit

    def __str__(self) -> str:
        width = max((len(row.name) for row in self), default=4)
        head = f"{'name':<{width}}  {'role':<14}  {'shape':>13}  {'gamma':>6}  "
        head += f"{'expected':>10}  {'realised':>10}  {'error/se':>8}"
        lines = [
            f"{row.name:<{width}}  {row.role:<14}  {'x'.join(map(str, row.shape)):>13}  "
            f"{row.gamma:>6.3g}  {row.expected_std:>10.4g}  {row.realised_std:>10.4g}  "
            f"{row.deviation:>+8.2f}"
            for row in self
        ]
        full = [f"{note}: {', '.join(names)}" for note, names in self.notes.items()]
        return "\n".join([head, *lines, *full])

    def headline(self) -> str:
        """One line: how many matrices were drawn, and how well the draw fits."""
        if self.source is not None:
            return f"no matrix drawn, weights as in {self.source}"
        worst = max(self, key=lambda row: abs(row.deviation))
        return (
            f"{len(self)} matrices drawn with std {self._rule()}; realised std within "
            f"{abs(worst.deviation):.1f} standard errors ({worst.name})"
        )

    def _rule(self) -> str:
        if self.std is None:
            rates = sorted({row.gamma for row in self})
            return f"d_in^-gamma, gamma {', '.join(f'{rate:g}' for rate in rates)}"
        ends = sorted({(row.gamma, row.shape[1]) for row in self})
        del ends[1:-1]
        said = " to ".join(f"{rate:.3g} (d_in {d_in})" for rate, d_in in ends)
        return f"{self.std:g}, that is gamma {said}"

    def summary(self) -> str:
        """The table with one line per role and std, and the notes with their first names."""
        lines = [
            f"{'role':<14}  {'matrices':>8}  {'d_in':>6}  {'gamma':>6}  {'expected':>10}  "
            f"{'realised':>10}  {'error/se':>8}"
        ]
        for (role, d_in, gamma, std), rows in self._groups().items():
            entries = [math.prod(row.shape) for row in rows]
            squares = sum(n * r.realised_std**2 for n, r in zip(entries, rows, strict=True))
            realised = math.sqrt(squares / sum(entries))
            deviation = (realised / std - 1) * math.sqrt(2 * sum(entries))
            lines.append(
                f"{role:<14}  {len(rows):>8}  {d_in:>6}  {gamma:>6.3g}  {std:>10.4g}  "
                f"{realised:>10.4g}  {deviation:>+8.2f}"
            )
        for note, names in self.notes.items():
            more = len(names) - _NAMES_SHOWN
            shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
            lines.append(f"{note}: {shown}")
        return "\n".join(lines)

    def _groups(self) -> dict[tuple[str, int, float, float], list[AuditRow]]:
        groups: dict[tuple[str, int, float, float], list[AuditRow]] = {}
        for row in self:
            key = (row.role, row.shape[1], row.gamma, row.expected_std)
            groups.setdefault(key, []).append(row)
        return groups
