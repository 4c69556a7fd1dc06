"""Charts of a page as a figure of their own: one SVG file that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from markupsafe import escape

from lit_gamma.comparison.charts import Chart
from lit_gamma.comparison.page import environment

_WIDTH, _GAP, _HEAD, _TOP, _KEY = 340, 24, 24, 22, 16


def as_file(charts: Sequence[Chart], title: str) -> str:
    """Charts side by side, with their titles and keys, in the page's style and light colours.

    Args:
        charts: At least one.
        title: What stands above all of them.
    """
    n_lines = max([1, *(len(chart.keys) for chart in charts)])
    style = environment().get_template("style.css.j2").render(n_lines=n_lines, tokens=None)
    light = re.sub(
        r"@media \(prefers-color-scheme: dark\) \{.*?\} \}\n", "", style, flags=re.DOTALL
    )
    height = max(
        _TOP + _height(chart) + _KEY * -(-len(chart.keys) // _columns(chart)) for chart in charts
    )
    box = f"0 0 {len(charts) * (_WIDTH + _GAP)} {_HEAD + height + 6}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"><style>{escape(light)}</style>',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="8" y="18" font-weight="bold">{escape(title)}</text>',
    ]
    for i, chart in enumerate(charts):
        parts += [
            f'<g transform="translate({i * (_WIDTH + _GAP) + 8} {_HEAD})">',
            *_chart(chart),
            "</g>",
        ]
    return "".join([*parts, "</svg>"])


def _chart(chart: Chart) -> Iterator[str]:
    title = f"{chart.title}, {chart.note}" if chart.note else chart.title
    yield f'<text x="0" y="14">{escape(title)}</text>'
    size = f'width="{_WIDTH}" height="{_height(chart)}"'
    yield str(chart.svg).replace("<svg ", f'<svg x="0" y="{_TOP}" {size} ', 1)
    for i, (number, name) in enumerate(chart.keys):
        row, column = divmod(i, _columns(chart))
        x, y = 40 + 150 * column, _TOP + _height(chart) + _KEY * row + 8
        yield f'<path class="line g{number}" d="M{x} {y}h24"/>'
        yield f'<text x="{x + 30}" y="{y + 3.5}">{escape(name)}</text>'


def _columns(chart: Chart) -> int:
    """Keys beside each other: two where their names have room."""
    return 2 if all(len(name) < 20 for _, name in chart.keys) else 1


def _height(chart: Chart) -> int:
    """At the width that all are drawn at."""
    width, height = re.findall(r'viewBox="0 0 (\S+) (\S+)"', str(chart.svg))[0]
    return round(float(height) * _WIDTH / float(width))
