"""The report: one HTML file that needs nothing else, and its numbers as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_gamma.comparison.alignment import aligned
from lit_gamma.comparison.numbers import CSV, compute
from lit_gamma.comparison.page import render
from lit_gamma.comparison.runs import gather
from lit_gamma.comparison.sweep_runs import SweepRuns
from lit_gamma.comparison.sweep_view import cell_table, critical_table, views
from lit_gamma.errors import InputError
from lit_gamma.files import replacing
from lit_gamma.trajectory.token_classes import TokenClasses


def write_report(
    run_dirs: Sequence[str | Path],
    out: str | Path,
    classes: TokenClasses | None = None,
    tables: bool = False,
    sweep: SweepRuns | None = None,
) -> list[Path]:
    """Writes a report, each file whole or not at all.

    Args:
        run_dirs: Directories of one run or several.
        out: The HTML file.
        classes: Thresholds of the classes of tokens.
        tables: Write the tables too, ``<name>_losses.csv`` beside ``<name>.html``.
        sweep: The sweep that the runs are of, whose analysis the page begins with.

    Returns:
        The files.

    Raises:
        InputError: A directory is no run, or ``out`` is a directory or cannot be written.
    """
    path = Path(out)
    if path.is_dir():
        raise InputError(f"--out {out} is a directory; give the name of an HTML file")
    side_by_side, without_tokens = gather(run_dirs), ""
    try:
        side_by_side = aligned(side_by_side, classes)
    except InputError as reason:
        without_tokens = str(reason)
    numbers = compute(side_by_side)
    found = views(sweep) if sweep else []
    files = {path: render(side_by_side, numbers, without_tokens, (sweep, found) if sweep else None)}
    if tables and found:
        for name, table in (("cells", cell_table(found)), ("critical", critical_table(found))):
            files[path.with_name(f"{path.stem}_{name}.csv")] = table.to_csv(index=False)
    for name in CSV if tables else ():
        if len(table := getattr(numbers, name)):
            files[path.with_name(f"{path.stem}_{name}.csv")] = table.to_csv(index=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            with replacing(file) as draft:
                draft.write_text(content, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error}") from error
    return list(files)
