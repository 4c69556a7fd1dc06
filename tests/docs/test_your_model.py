"""The code of docs/your_model.md, run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import numpy as np
import pandas
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


SCRIPTS = {
    "lightning": "runs/checkpoints/step=20.ckpt",
    "hf": "runs/checkpoint-20",
    "loop": "runs/step=20.pt",
}
"""The drivers, each with its checkpoint of step 20."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What the documented scripts record, whole and interrupted at step 20 and resumed."""
    found = {}
    for driver, checkpoint in SCRIPTS.items():
        folder = tmp_path_factory.mktemp(driver)
        (code,) = (code for code in CODE if code.startswith(f"# {driver}_script.py\n"))
        scope = {"__name__": driver}
        exec(code, scope)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            torch.manual_seed(0)
            whole = trajectory.load(scope["train"]("whole", 30))
            scope["train"]("runs", 20)
            resumed = trajectory.load(scope["train"]("runs", 30, checkpoint))
        found[driver] = whole, resumed
    return found


@pytest.mark.parametrize("driver", SCRIPTS)
def test_an_interrupted_run_goes_on_exactly_whoever_trains(recorded, driver):
    whole, resumed = recorded[driver]
    assert set(whole) == {"condensation", "weight_norms", "token_loss"}
    for name, table in whole.items():
        pandas.testing.assert_frame_equal(resumed[name], table, check_exact=True)


@pytest.mark.parametrize("driver", ["hf", "loop"])
def test_the_same_is_recorded_whoever_trains(recorded, driver):
    under_lightning, found = recorded["lightning"][0], recorded[driver][0]
    for name, expected in under_lightning.items():
        if "matrix" in expected:
            expected = expected.assign(matrix=expected["matrix"].str.removeprefix("model."))
        pandas.testing.assert_frame_equal(found[name], expected, rtol=1e-6, atol=0)
    start = found["weight_norms"].query("step == 0")
    assert start["implied_gamma"].mean() == pytest.approx(1, abs=0.02)
    assert list(found["token_loss"]["step"]) == list(range(30))
    assert found["token_loss"]["mean"][0] == pytest.approx(np.log(100), rel=0.01)
    assert set(found["condensation"]["step"]) == set(range(0, 31, 5))


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


@pytest.mark.slow
def test_two_processes_under_hugging_face_s_trainer_go_on_exactly(tmp_path):
    (code,) = (code for code in CODE if code.startswith("# hf_script.py\n"))
    runs = ("'whole', 12", "'runs', 10", "'runs', 12, 'runs/checkpoint-10'")
    calls = "\n".join(f"train({arguments})" for arguments in runs)
    script = tmp_path / "script.py"
    script.write_text(code.partition("if __name__")[0] + calls)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*launch, script], cwd=tmp_path, env=environment, check=True, timeout=240)
    whole, resumed = (trajectory.load(tmp_path / name) for name in ("whole", "runs"))
    for name, table in whole.items():
        pandas.testing.assert_frame_equal(resumed[name], table, check_exact=True)
    assert list(whole["token_loss"]["step"]) == list(range(12))
    assert not whole["weight_norms"].duplicated(["step", "matrix"]).any()
