"""The table of quantities in docs/trajectory.md is what the callbacks say."""

from __future__ import annotations

import os
import re
from itertools import groupby

from helpers.runs import ROOT

from callbacks.anchor_attention import AnchorAttention
from callbacks.anchor_reasoning import AnchorReasoning
from callbacks.key_embedding import KeyEmbedding
from lit_gamma import callbacks
from lit_gamma.callbacks import Quantity, TrajectoryCallback
from lit_gamma.trajectory.table import snake_case

DOC = ROOT / "docs" / "trajectory.md"
HEAD = "| table | column | meaning | range | null |\n|---|---|---|---|---|\n"
MOST = 6
"""Lines that differ in a number alone; of more, the first two and the last are shown."""


def recorders() -> list[type[TrajectoryCallback]]:
    public = [getattr(callbacks, name) for name in callbacks.__all__]
    found = [c for c in public if isinstance(c, type) and issubclass(c, TrajectoryCallback)]
    return [c for c in [*found, AnchorReasoning, AnchorAttention, KeyEmbedding] if c.quantities]


def line(table: str, quantity: Quantity) -> str:
    meaning = ", ".join(filter(None, (quantity.meaning, quantity.unit)))
    null = quantity.null_formula or quantity.note
    cells = (f"`{table}`", f"`{quantity.name}`", meaning, quantity.range, null)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def documented() -> str:
    lines = []
    for callback in recorders():
        for _, group in groupby(callback.quantities, key=lambda q: q.name.rstrip("0123456789.")):
            shown = [line(snake_case(callback.__name__), quantity) for quantity in group]
            if len(shown) > MOST:
                shown = [*shown[:2], "| | ... | | | |\n", shown[-1]]
            lines += shown
    return HEAD + "".join(lines)


def test_every_column_of_the_record_is_documented_as_its_callback_says():
    """Rewrite it with UPDATE_DOCS=1 pytest tests/docs/test_trajectory.py."""
    before, table, after = re.split(
        r"(?s)(?<=<!-- quantities -->\n)(.*)(?=<!-- /quant)", DOC.read_text()
    )
    if os.environ.get("UPDATE_DOCS"):
        DOC.write_text(before + documented() + after)
    else:
        assert table == documented()


def test_every_quantity_says_what_it_is():
    assert len(recorders()) == 17
    for callback in recorders():
        for quantity in callback.quantities:
            assert quantity.meaning, (callback, quantity.name)
            assert quantity.null is None or quantity.null_formula, (callback, quantity.name)
