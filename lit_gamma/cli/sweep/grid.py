"""The grid of a sweep, as its user writes it: ``model.gamma=0.3,0.5``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from lit_gamma.errors import InputError


def axes(written: Sequence[str]) -> dict[str, list[str]]:
    """Reads a grid.

    Args:
        written: ``KEY=VALUE,VALUE,...`` of each axis. A comma inside of brackets, braces or quotes
            belongs to its value.

    Returns:
        Key to its values, as they would be written on the command line of ``fit``.

    Raises:
        InputError: There is no axis, or one that cannot be read, has no value or comes twice.
    """
    if not written:
        raise InputError("the grid is empty: give --grid model.gamma=0.3,0.5,0.8, once or more")
    grid: dict[str, list[str]] = {}
    for axis in written:
        key, _, text = axis.partition("=")
        values = list(_split(text))
        if not key or "" in values:
            raise InputError(f"--grid {axis}: give a key of the config and values, KEY=VALUE,VALUE")
        if key in grid:
            raise InputError(f"--grid {axis}: {key} comes twice; put all of its values in one")
        if key == "seed_everything":
            raise InputError(f"--grid {axis}: the seeds are given by --seeds N")
        grid[key] = values
    return grid


def cells(grid: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every combination of a grid's values, the last axis fastest."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def name_of(cell: Mapping[str, str]) -> str:
    """What to call a combination: ``gamma0.3-lr1e-4``, or with whole keys where these clash."""
    short = {key: key.rpartition(".")[2] for key in cell}
    clash = len(set(short.values())) < len(short)
    named = "-".join(f"{key if clash else short[key]}{value}" for key, value in cell.items())
    return "".join(c if c.isalnum() or c in ".-_+" else "_" for c in named)


def _split(text: str) -> Iterator[str]:
    depth, quote, value = 0, "", ""
    for c in text:
        if quote or c in "'\"":
            quote = "" if c == quote else quote or c
        depth += (c in "[{(") - (c in "]})")
        if c == "," and not depth and not quote:
            yield value.strip()
            value = ""
        else:
            value += c
    yield value.strip()
