"""The plan of the house, held by a tool."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module

import pytest
from helpers.runs import ROOT


def test_rooms_import_from_lower_rooms_only_and_in_no_circle():
    # A process of its own: import-linter disables the loggers of the one it runs in.
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as l; l()"]
    found = subprocess.run([*lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_what_a_benchmark_imports_of_the_package_is_there(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("lit_gamma"):
            room = import_module(str(node.module))
            for name in node.names:
                assert hasattr(room, name.name) or import_module(f"{node.module}.{name.name}")
