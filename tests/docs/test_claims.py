"""The verdicts that docs/claims.md shows are those of the runs that are packed beside it."""

from __future__ import annotations

import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import ROOT
from omegaconf import OmegaConf

from lit_gamma.cli.sweep.grid import cells, name_of
from lit_gamma.comparison.claim_file import ClaimSweep, read_claim
from lit_gamma.comparison.claim_page import write_claim
from lit_gamma.comparison.claim_verdict import judge
from lit_gamma.comparison.sweep_runs import SweepRuns, sweep_of
from lit_gamma.comparison.sweep_table import row, summary_of, table_of

CLAIMS = {path.stem: read_claim(path) for path in (ROOT / "configs/claims").glob("*.yaml")}
PACKED = sorted((ROOT / "docs/claims").glob("*.tar.xz"))


@pytest.fixture
def page(monkeypatch):
    """What makes the page."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import claims

    return claims


def unpacked(packed: Path, to: Path) -> None:
    (to / "docs").mkdir()
    with tarfile.open(packed) as archive:
        archive.extractall(to / "runs/claims", filter="data")


def said_of(page, packed: Path) -> tuple[str, str, tuple[str, str]]:
    """The claim, what the page says of it, and its command: before ``--jobs 2``, and after."""
    name = packed.name.partition("-")[0]
    said = page.sections(ROOT / "docs/claims.md")[name]
    command = re.search(r"^(python -m lit_gamma claim .*)--jobs 2(.*)$", said, re.MULTILINE)
    return name, said, command.groups()


def typed(text: str) -> Any:
    """A value of a grid; lists are windows, which are of floats."""
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"x={text}"]))["x"]
    return [float(number) for number in value] if isinstance(value, list) else value


def read(folder: Path, sweep: ClaimSweep) -> SweepRuns:
    """A sweep's runs by its grid and their summaries alone."""
    rows = []
    for seed in range(1, 1 + sweep.seeds):
        for cell in cells(sweep.grid):
            run = f"{name_of(cell)}-seed{seed}"
            setting = {key: typed(value) for key, value in cell.items()}
            summary = summary_of(folder / run) or None
            ended = summary is not None and summary["status"] == "finished"
            rows.append(row(run, setting, seed, summary, ended))
    return sweep_of(folder, table_of(rows))


@pytest.mark.slow
@pytest.mark.parametrize("packed", PACKED, ids=lambda path: path.name)
def test_the_runs_that_are_packed_give_the_verdict_on_the_page(tmp_path, monkeypatch, page, packed):
    unpacked(packed, tmp_path)
    monkeypatch.chdir(tmp_path)
    name, said, command = said_of(page, packed)
    claim, root = CLAIMS[name], Path("runs/claims")
    runs = {
        label: read(root / of.name / "cpu" / label.rpartition("/")[2], sweep)
        for label, (of, sweep) in page.used(claim, CLAIMS, "cpu")
    }
    write_claim(judge(claim, "cpu", runs), root / name / "cpu", "--jobs 2".join(command))
    assert page.section(claim, CLAIMS, root, Path("docs")) == said


@pytest.mark.slow
def test_the_command_knows_the_runs_that_are_packed(tmp_path, monkeypatch, page, command_line):
    for folder in ("configs", "callbacks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    packed = ROOT / "docs/claims/C2-cpu.tar.xz"
    unpacked(packed, tmp_path)
    monkeypatch.chdir(tmp_path)
    name, said, (command, files) = said_of(page, packed)
    for file in shlex.split(files)[1::2]:  # None is read again, but as by runs that are missing.
        Path(file).write_text('{"text": "Is it? True"}\n')
    command_line(*shlex.split(command)[3:], "--jobs=0", *shlex.split(files))
    again = page.section(CLAIMS[name], CLAIMS, Path("runs/claims"), Path("docs"))
    assert re.sub("--jobs=0", "--jobs 2", again) == said
