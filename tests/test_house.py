"""The plan of the house, held by a tool."""

from __future__ import annotations

import os

from helpers.runs import ROOT
from importlinter.cli import lint_imports


def test_rooms_import_from_lower_rooms_only_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", cache_dir=None)
    assert broken == os.EX_OK, capsys.readouterr().out
