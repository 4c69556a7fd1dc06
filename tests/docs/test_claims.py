"""The verdicts that docs/claims.md shows are those of the runs that are packed beside it."""

from __future__ import annotations

import re
import shlex
import shutil
import tarfile
from pathlib import Path

import pytest
from helpers.runs import ROOT

from lit_gamma.comparison.claim_file import read_claim

PACKED = sorted((ROOT / "docs/claims").glob("*.tar.xz"))


@pytest.mark.slow
@pytest.mark.parametrize("packed", PACKED, ids=lambda path: path.name)
def test_the_runs_that_are_packed_give_the_verdict_on_the_page(
    tmp_path, command_line, monkeypatch, packed
):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import claims

    for folder in ("configs", "callbacks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    with tarfile.open(packed) as archive:
        archive.extractall("runs/claims", filter="data")
    said = claims.sections(ROOT / "docs/claims.md")[packed.name.partition("-")[0]]
    command = re.search(r"^python -m lit_gamma (claim .*)--jobs 2(.*)$", said, re.MULTILINE)
    files = shlex.split(command[2])[1::2]
    for file in files:  # None is read again, but as they would be by runs that are missing.
        place = Path(file.replace("*", "x"))
        place.parent.mkdir(exist_ok=True)
        place.write_text('{"text": "Is it? True"}\n')
    command_line(*shlex.split(f"{command[1]}--jobs 0{command[2]}"))
    known = {path.stem: read_claim(path) for path in Path("configs/claims").glob("*.yaml")}
    claim = known[packed.name.partition("-")[0]]
    again = claims.section(claim, known, Path("runs/claims"), Path("docs"))
    assert again.replace("--jobs 0", "--jobs 2") == said
