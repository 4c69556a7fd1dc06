"""A project elsewhere with its own callbacks/ folder, and lit-gamma installed from its wheel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.runs import ROOT

from lit_gamma import trajectory

PROJECT = {
    "train.py": """
from lightning.pytorch.cli import LightningCLI

LightningCLI()
""",
    "model.py": """
import torch
from lightning import LightningModule
from torch import nn


class Classifier(LightningModule):
    def __init__(self, d_model: int = 64):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, d_model), nn.GELU(), nn.Linear(d_model, 10))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def train_dataloader(self):
        data = torch.utils.data.TensorDataset(torch.randn(64, 32), torch.arange(64) % 10)
        return torch.utils.data.DataLoader(data, batch_size=16)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())
""",
    "callbacks/keep_start.py": """
import lit_gamma
import torch
from lightning import Callback


class KeepStart(Callback):
    def __init__(self, path: str):
        self.path = path

    def on_train_start(self, trainer, pl_module):
        kept = {"weights": pl_module.state_dict(), "imported": lit_gamma.__file__}
        torch.save(kept, self.path)
""",
    "config.yaml": """
seed_everything: 3
model:
  class_path: model.Classifier
trainer:
  max_steps: 3
  accelerator: cpu
  enable_progress_bar: false
  enable_checkpointing: false
  callbacks:
    - class_path: lit_gamma.callbacks.GammaInit
      init_args: {gamma: 1.0}
    - class_path: lit_gamma.callbacks.Condensation
    - class_path: callbacks.keep_start.KeepStart
      init_args: {path: start.pt}
""",
}


def run(*command: object, **options) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel installs, built from a copy so that nothing is left here."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("lit_gamma", "configs", "callbacks"):
        shutil.copytree(
            ROOT / name,
            source / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = "--no-deps", "--no-index", "--quiet"
    run("-m", "pip", "wheel", *offline, "--no-build-isolation", "-w", source / "dist", source)
    (wheel,) = (source / "dist").glob("lit_gamma-*.whl")
    run("-m", "pip", "install", *offline, "--target", target, wheel)
    return target


@pytest.mark.slow
def test_two_lines_in_a_project_elsewhere(installed, tmp_path):
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    said = run("train.py", "fit", "--config=config.yaml", cwd=tmp_path, env=environment)
    assert "GammaInit, gamma 1.0" in said
    start = torch.load(tmp_path / "start.pt")
    assert start["imported"] == str(installed / "lit_gamma" / "__init__.py")
    for name, d_in in {"layers.0.weight": 32, "layers.2.weight": 64}.items():
        weight = start["weights"][name]
        error = 5 / (2 * weight.numel()) ** 0.5
        assert weight.square().mean().sqrt().item() == pytest.approx(1 / d_in, rel=error)
    table = trajectory.load(tmp_path / "lightning_logs" / "version_0")["condensation"]
    assert set(table["step"]) == {0, 1, 2, 3}
    assert set(table["matrix"]) == {"layers.0", "layers.2"}
    for folder, kind in {"comparison": "*.j2", "trained/tasks": "*.yaml"}.items():
        files = list((ROOT / "lit_gamma" / folder).glob(kind))
        assert files
        assert all((installed / "lit_gamma" / folder / path.name).is_file() for path in files)


@pytest.mark.slow
def test_a_workspace_of_the_installed_package_runs_at_once(installed, tmp_path):
    assert {path.name for path in installed.iterdir()} & {"configs", "callbacks"} == set()
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    lit_gamma = partial(run, "-m", "lit_gamma", env=environment)
    lit_gamma("init", "mine", cwd=tmp_path)
    steps = "--trainer.max_steps=3", "--trainer.accelerator=cpu", "--trainer.callbacks+=Kurtosis"
    said = lit_gamma("fit", "--config=configs/anchor.yaml", *steps, cwd=tmp_path / "mine")
    assert "finished: gamma 0.8, seed 1, 3 steps" in said
    (recorded,) = (tmp_path / "mine" / "runs" / "anchor").iterdir()
    tables = trajectory.load(recorded)
    assert {"anchor_reasoning", "kurtosis"} <= set(tables)
    start = tables["kurtosis"].query("step == 0 and role == 'mlp_up'")["kurtosis"]
    assert start.mean() == pytest.approx(3, abs=0.05)


def test_transformers_stays_optional():
    sources = {path.name: path.read_text() for path in (ROOT / "lit_gamma").rglob("*.py")}
    importing = {
        name: found[1]
        for name, source in sources.items()
        if (found := re.search(r"^([ \t]*)(?:import|from) transformers", source, re.M))
    }
    # The second lies in exports, for transformers; the third imports it where a text is given.
    assert sorted(importing) == ["hf.py", "modeling_lit_gamma.py", "models.py"]
    assert importing["models.py"]  # Indented: not with the package.
