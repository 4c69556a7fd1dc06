"""The plan of the house, held by a tool."""

from __future__ import annotations

import ast
import os
from importlib import import_module

import pytest
from helpers.runs import ROOT
from importlinter.cli import lint_imports


def test_rooms_import_from_lower_rooms_only_and_in_no_circle(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(config_filename="pyproject.toml", cache_dir=None)
    assert broken == os.EX_OK, capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_what_a_benchmark_imports_of_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lit_gamma"):
            room = import_module(str(node.module))
            for name in node.names:
                assert hasattr(room, name.name) or import_module(f"{node.module}.{name.name}")
