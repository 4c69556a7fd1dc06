"""What a table of the record is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Index = Mapping[str, Sequence[Any]]
"""The columns that say which item a row is about, each with one value per item."""
