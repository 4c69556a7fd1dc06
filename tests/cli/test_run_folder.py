"""Every run has a folder of its own, and a resumed one goes on in its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning
import pytest
import torch
from helpers.runs import TINY
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import InputError, trajectory
from lit_gamma.cli.run_folder import own_folder

RUN = Path("runs/anchor/gamma0.8-seed1")


def trainer(logger) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu", logger=logger, enable_progress_bar=False, enable_checkpointing=False
    )


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
@pytest.mark.parametrize(
    ("version", "names"),
    [(None, ["new", "new-2", "new-3"]), ("x", ["x", "x-2", "x-3"])],
)
def test_loggers_made_together_get_folders_apart_and_unused_ones_go(tmp_path, kind, version, names):
    loggers = [kind(tmp_path / "runs", "a", version=version) for _ in range(3)]
    with own_folder(trainer(loggers[0]), None, "new"), own_folder(trainer(loggers[1]), None, "new"):
        (Path(loggers[1].log_dir) / "trajectory").mkdir()
        with own_folder(trainer(loggers[2]), None, "new"):
            folders = [Path(logger.log_dir).name for logger in loggers]
            assert folders == names
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.glob("*/*/*"))] == [
        f"runs/a/{names[1]}"
    ]


@pytest.mark.parametrize("version", ["../x", "a/b", ".."])
def test_a_name_is_that_of_one_folder(tmp_path, version):
    logger = TensorBoardLogger(tmp_path, "a", version=version)
    with (
        pytest.raises(InputError, match=r"cannot name a run's folder"),
        own_folder(trainer(logger), None, "new"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_its_folder_and_another_branches_off(workspace, command_line):
    flags = [*TINY, "--trainer.log_every_n_steps=1"]
    command_line("fit", *flags, "--trainer.max_steps=20")
    kept = RUN / "checkpoints" / "last.ckpt"
    config = (RUN / "config.yaml").read_text()
    command_line("fit", *flags, "--trainer.max_steps=30", f"--ckpt_path={kept}")
    assert torch.load(kept, weights_only=False)["global_step"] == 30
    assert (RUN / "config.yaml").read_text() == config
    assert "max_steps: 30" in (RUN / "config-step20.yaml").read_text()
    assert list(trajectory.load(RUN)["token_loss"]["step"]) == list(range(30))
    events = EventAccumulator(str(RUN), {"scalars": 0}).Reload().Scalars("train/loss")
    steps = [event.step for event in events]
    assert steps == sorted(set(steps))
    assert steps[-1] >= 29

    shutil.copy(kept, RUN / "checkpoints" / "earlier.ckpt")
    command_line(
        "fit", *flags, "--trainer.max_steps=35", f"--ckpt_path={RUN}/checkpoints/earlier.ckpt"
    )
    assert trajectory.load(RUN)["token_loss"]["step"].max() == 29
    branch = trajectory.load("runs/anchor/gamma0.8-seed1-2")["token_loss"]
    assert list(branch["step"]) == list(range(35))
    command_line("validate", *flags, f"--ckpt_path={kept}")
    assert {path.name for path in RUN.parent.iterdir()} == {RUN.name, f"{RUN.name}-2"}


@pytest.mark.slow
def test_overfitting_sees_the_same_batches_again(workspace, command_line):
    flags = ["--trainer.overfit_batches=2", "--model.optimizer.warmup_steps=5"]
    command_line("fit", *TINY[:-2], *TINY[-1:], *flags, "--trainer.max_steps=120",
                 "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false",
                 "--model.optimizer.lr=0.01")  # fmt: skip
    losses = trajectory.load(RUN)["token_loss"]["mean"]
    assert losses.iloc[0] > 4.5
    assert losses.iloc[-1] < 1
