"""The scripts of examples/, run as they stand."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from helpers.runs import ROOT
from PIL import Image

from lit_gamma import trajectory

DRIVERS = {
    "lightning_module": "runs/checkpoints/step=20.ckpt",
    "hugging_face": "runs/checkpoint-20",
    "bare_loop": "runs/step=20.pt",
}
"""The scripts that train the same model, each with its checkpoint of step 20."""


def script(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What the scripts record, whole and interrupted at step 20 and resumed."""
    found = {}
    for driver, checkpoint in DRIVERS.items():
        train = runpy.run_path(str(script(driver)))["train"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path_factory.mktemp(driver))
            torch.manual_seed(0)
            whole = trajectory.load(train("whole", 30))
            train("runs", 20)
            found[driver] = whole, trajectory.load(train("runs", 30, checkpoint))
    return found


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_interrupted_run_goes_on_exactly_whoever_trains(recorded, driver):
    whole, resumed = recorded[driver]
    assert set(whole) == {"condensation", "weight_norms", "token_loss"}
    for name, table in whole.items():
        pandas.testing.assert_frame_equal(resumed[name], table, check_exact=True)


@pytest.mark.parametrize("driver", ["hugging_face", "bare_loop"])
def test_the_same_is_recorded_whoever_trains(recorded, driver):
    under_lightning, found = recorded["lightning_module"][0], recorded[driver][0]
    for name, expected in under_lightning.items():
        if "matrix" in expected:
            expected = expected.assign(matrix=expected["matrix"].str.removeprefix("model."))
        pandas.testing.assert_frame_equal(found[name], expected, rtol=1e-6, atol=0)
    start = found["weight_norms"].query("step == 0")
    assert start["implied_gamma"].mean() == pytest.approx(1, abs=0.02)
    assert list(found["token_loss"]["step"]) == list(range(30))
    assert found["token_loss"]["mean"][0] == pytest.approx(np.log(100), rel=0.01)
    assert set(found["condensation"]["step"]) == set(range(0, 31, 5))


@pytest.mark.slow
def test_two_processes_under_hugging_face_s_trainer_go_on_exactly(tmp_path):
    runs = ("'whole', 12", "'runs', 10", "'runs', 12, 'runs/checkpoint-10'")
    calls = "\n".join(f"train({arguments})" for arguments in runs)
    calls += "\ntorch.distributed.barrier()\ntorch.distributed.destroy_process_group()\n"
    written = tmp_path / "script.py"
    written.write_text(script("hugging_face").read_text().partition("if __name__")[0] + calls)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*launch, written], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]
    whole, resumed = (trajectory.load(tmp_path / name) for name in ("whole", "runs"))
    for name, table in whole.items():
        pandas.testing.assert_frame_equal(resumed[name], table, check_exact=True)
    assert list(whole["token_loss"]["step"]) == list(range(12))
    assert not whole["weight_norms"].duplicated(["step", "matrix"]).any()


@pytest.mark.slow
def test_weights_and_biases_gets_the_picture_of_the_record(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run = runpy.run_path(str(script("wandb_logger")))["train"]("runs", 100)
    assert run == "runs/anchor/gamma0.8-seed1"
    assert list(trajectory.load(run)["token_loss"]["step"]) == list(range(100))
    (picture,) = Path("runs/wandb").glob("offline-run-*/files/media/images/overview_*.png")
    assert Image.open(picture).width == 572
