"""What the doctor finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "no single rule",
    "not as drawn",
    "saturated norms",
    "attention sink",
    "weight decay",
    "first loss",
]
"""What a finding is about."""


@dataclass(frozen=True)
class Finding:
    """Something to change, or to know.

    Attributes:
        kind: What it is about.
        level: ``warning`` if it is likely to harm, ``note`` if opinions or cases differ.
        what: What was found, with its figures.
        reason: Why it matters.
        source: Who says so.
        remedy: What to do.
    """

    kind: Kind
    level: Literal["warning", "note"]
    what: str
    reason: str
    source: str
    remedy: str

    def __str__(self) -> str:
        return (
            f"{self.level}: {self.what}\n  why     {self.reason}\n"
            f"  source  {self.source}\n  remedy  {self.remedy}"
        )
