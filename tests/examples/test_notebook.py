"""The notebook of examples/, executed as it stands."""

from __future__ import annotations

import base64
import os
from io import BytesIO

import nbformat
import pytest
from helpers.runs import ROOT
from nbclient import NotebookClient
from PIL import Image

from lit_gamma import trajectory

NOTEBOOK = ROOT / "examples" / "anchor.ipynb"


def pictures(notebook) -> list[dict[str, str]]:
    """The outputs that are pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if "image/png" in output.get("data", {})]


def keep(notebook) -> None:
    """Writes the notebook with its pictures in 64 colours, and no message of the libraries."""
    for data in pictures(notebook):
        drawn = Image.open(BytesIO(base64.b64decode(data["image/png"])))
        small = BytesIO()
        drawn.convert("RGB").quantize(64).save(small, "png", optimize=True)
        data["image/png"] = base64.b64encode(small.getvalue()).decode()
    for cell in notebook.cells:
        cell.metadata.clear()
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream"]
    nbformat.write(notebook, NOTEBOOK)


@pytest.mark.slow
def test_the_notebook_runs_and_its_two_runs_differ_as_it_says(workspace, monkeypatch):
    """Rewrite what it shows with UPDATE_DOCS=1 pytest tests/examples/test_notebook.py."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (workspace / "examples").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(workspace / "examples")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    usual, small = (trajectory.load(f"examples/runs/notebook/version_{n}") for n in range(2))
    assert usual["anchor_reasoning"]["symmetry"].iloc[-1] > 0.8
    assert small["anchor_reasoning"]["composition"].iloc[-1] > 0.8
    assert len(pictures(notebook)) == 3
    if os.environ.get("UPDATE_DOCS"):
        keep(notebook)


def test_the_notebook_is_kept_with_small_pictures():
    assert NOTEBOOK.stat().st_size < 300_000
    assert len(pictures(nbformat.read(NOTEBOOK, as_version=4))) == 3
