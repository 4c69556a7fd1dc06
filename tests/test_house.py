"""The plan of the house, held by a tool."""

from __future__ import annotations

import os
import runpy

from helpers.runs import ROOT
from importlinter.cli import lint_imports


def test_rooms_import_from_lower_rooms_only_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", cache_dir=None)
    assert broken == os.EX_OK, capsys.readouterr().out


def test_every_benchmark_can_be_imported(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # One imports another.
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        runpy.run_path(str(path), run_name="imported")
