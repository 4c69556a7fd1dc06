"""The notebook of examples/: its cells run, and what it shows is kept small."""

from __future__ import annotations

import base64
import json
import os
import sys
from io import BytesIO

import matplotlib
import pytest
from helpers.runs import ROOT
from PIL import Image

from lit_gamma import trajectory

NOTEBOOK = ROOT / "examples" / "anchor.ipynb"


def pictures(notebook) -> list[dict[str, str]]:
    """The outputs that are pictures."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [output["data"] for output in outputs if "image/png" in output.get("data", {})]


def keep(notebook) -> None:
    """Writes the notebook with its pictures in 64 colours, and no message of the libraries."""
    import nbformat

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
def test_the_cells_run_one_after_the_other(workspace, monkeypatch):
    """With 20 of the 500 steps, in this process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    matplotlib.use("Agg")
    cells = [c["source"] for c in json.loads(NOTEBOOK.read_text())["cells"] if "outputs" in c]
    code = ["".join(source) for source in cells]
    assert sum("max_steps=500" in cell for cell in code) == 1
    names: dict = {"__name__": "notebook"}
    for cell in code:
        exec(cell.replace("max_steps=500", "max_steps=20"), names)
    for gamma in (0.5, 0.8):
        record = trajectory.load(names["runs"][gamma])
        assert record["anchor_reasoning"]["step"].max() == 20
        start = record["weight_norms"].query("step == 0 and role == 'query'")["implied_gamma"]
        assert start.mean() == pytest.approx(gamma, abs=0.02)
    assert len(names["shares"].columns) == 4


@pytest.mark.skipif("UPDATE_DOCS" not in os.environ, reason="rewrites what the notebook shows")
def test_the_two_runs_differ_as_it_says(workspace, monkeypatch):
    """Executes it whole: UPDATE_DOCS=1 pytest tests/examples/test_notebook.py."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (workspace / "examples").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(workspace / "examples")}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    usual, small = (trajectory.load(f"examples/runs/notebook/version_{n}") for n in range(2))
    assert usual["anchor_reasoning"]["symmetry"].iloc[-1] > 0.8
    assert small["anchor_reasoning"]["composition"].iloc[-1] > 0.8
    keep(notebook)


def test_it_is_kept_with_small_pictures():
    assert NOTEBOOK.stat().st_size < 300_000
    assert len(pictures(json.loads(NOTEBOOK.read_text()))) == 3
