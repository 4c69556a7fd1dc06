"""A phase diagram: a heat map as inline SVG, with its numbers, coloured by the page's style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

_LEFT, _TOP, _ROW, _COLUMN, _BOTTOM = 56, 4, 26, 34, 34
_WIDTH, _LETTER = 340, 6


@dataclass(frozen=True)
class Tile:
    """One cell.

    Attributes:
        value: What is written in it; NaN for a cell without runs, which is drawn as missing.
        said: What it says when pointed at.
    """

    value: float
    said: str


def heat_map(
    tiles: Sequence[Sequence[Tile]],
    across: tuple[str, Sequence[str]],
    up: tuple[str, Sequence[str]],
) -> Markup:
    """Draws tiles.

    Args:
        tiles: Rows from the lowest to the highest, each from left to right.
        across: What the columns are, and the name of each.
        up: What the rows are, and the name of each.

    Returns:
        An ``<svg>``; wider than its usual 340 if it has more than 8 columns.
    """
    finite = [tile.value for row in tiles for tile in row if math.isfinite(tile.value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    left = max(_LEFT, 10 + _LETTER * max(map(len, up[1]), default=0))
    column = max(_COLUMN, (_WIDTH - left - 4) / max(1, len(across[1])))
    width, bottom = left + column * len(across[1]) + 4, _TOP + _ROW * len(up[1])
    wide = f' style="min-width:{width:.0f}px"' if width > _WIDTH else ""
    parts = [f'<svg viewBox="0 0 {width:.0f} {bottom + _BOTTOM}" role="img"{wide}>']
    for i, row in enumerate(tiles):
        y = bottom - _ROW * (i + 1)
        parts.append(
            f'<text x="{left - 5}" y="{y + _ROW / 2 + 3.5}" class="end">{escape(up[1][i])}</text>'
        )
        parts += [
            _tile(tile, left + column * j, y, column, low, high) for j, tile in enumerate(row)
        ]
    for j, name in enumerate(across[1]):
        x = left + column * (j + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 13}" class="mid">{escape(name)}</text>')
    middle = left + column * len(across[1]) / 2
    named = f"{escape(across[0])} →, {escape(up[0])} ↑"
    parts.append(f'<text x="{middle:.1f}" y="{bottom + 28}" class="mid">{named}</text>')
    return Markup("".join([*parts, "</svg>"]))


def _tile(tile: Tile, x: float, y: float, width: float, low: float, high: float) -> str:
    missing = math.isnan(tile.value)
    share = (tile.value - low) / (high - low) if high > low else 0.5
    opacity = 0.05 + 0.5 * min(max(share, 0.0), 1.0)
    drawn = "missing" if missing else f'heat" fill-opacity="{opacity:.3f}'
    return (
        f'<g><title>{escape(tile.said)}</title><rect class="{drawn}" x="{x + 1:.1f}" y="{y + 1}" '
        f'width="{width - 2:.1f}" height="{_ROW - 2}" rx="2"/><text x="{x + width / 2:.1f}" '
        f'y="{y + _ROW / 2 + 3.5}" class="mid in">{_short(tile.value)}</text></g>'
    )


def _short(value: float) -> str:
    """Three digits at most; – for none."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.3g}"
