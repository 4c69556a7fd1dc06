"""The code of docs/your_model.md, run as it stands."""

from __future__ import annotations

import re

import pytest
import torch
from helpers.runs import ROOT, TINY
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_gamma import trajectory
from lit_gamma.callbacks import GammaInit, Schedule

DOC = (ROOT / "docs/your_model.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


def write(folder, name: str) -> str:
    (code,) = (code for code in CODE if code.startswith(f"# {name}\n"))
    (folder / name).write_text(code)
    return code


def test_the_yaml_means_what_it_says_in_anyone_s_command_line(folder):
    text = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[0]
    (folder / "config.yaml").write_text(text)
    cli = LightningCLI(BoringModel, run=False, args=["--config=config.yaml"])
    init, condensation = cli.trainer.callbacks[:2]
    assert (type(init), init.gamma) == (GammaInit, 1.0)
    assert condensation.schedule == Schedule(per_decade=20, dense_until=100)
    assert not condensation.schedule.due(105)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_probes_run_from_the_command_line(workspace, command_line):
    text = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[1]
    (workspace / "probes.yaml").write_text(text)
    command_line("fit", *TINY, "--config=probes.yaml", "--trainer.max_steps=2")
    tables = trajectory.load("runs/anchor/gamma0.8-seed1")
    assert list(tables["norm_saturation"]["module"].unique()) == [
        *(f"transformer.blocks.{i}.{part}_norm" for i in range(2) for part in ("attention", "mlp")),
        "transformer.norm",
    ]
    start = tables["attention_sink"].query("step == 0")
    assert len(start) == 2
    assert start["entropy_over_null"].between(0.99, 1.0001).all()


def test_the_doctor_s_script_finds_the_epsilon(folder, capsys):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    exec(write(folder, "examine.py"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 1
    assert "norms are saturated" in printed
