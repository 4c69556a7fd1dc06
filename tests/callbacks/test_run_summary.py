"""What a run has come to is the same, wherever it was stopped on its way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning
import pandas as pd
import pytest
from helpers import runs
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_gamma import trajectory
from lit_gamma.callbacks import Checkpoints, Condensation, RunSummary, Schedule


class Terminated(lightning.Callback):
    """A SIGTERM that is heard in a hook after the sixth step."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.hear)

    def hear(self, trainer, *_):
        if trainer.global_step == 6 and not trainer.sanity_checking:
            raise SIGTERMException


def came_to(root: Path, *callbacks, version: str, ckpt_path: Path | None = None) -> dict:
    runs.fit(
        root,
        *callbacks,
        Condensation(Schedule(every=4)),
        RunSummary(report=False),
        Checkpoints(
            root / version / "checkpoints",
            every_n_train_steps=2,
            save_last=True,
            save_on_exception=True,
        ),
        version=version,
        ckpt_path=ckpt_path,
        max_steps=6,
        enable_checkpointing=True,
        limit_val_batches=1.0,
        val_check_interval=3,
        check_val_every_n_epoch=None,
    )
    summary = json.loads((root / version / "summary.json").read_text())
    return {k: v for k, v in summary.items() if k not in ("seconds", "overhead")}


def same_record(run: Path, other: Path) -> None:
    tables = [trajectory.load(folder)["condensation"] for folder in (run, other)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_train_end"])
def test_a_run_stopped_after_its_last_step_makes_up_for_the_rest(tmp_path, hook):
    expected = came_to(tmp_path, version="alone")
    assert expected["measured_at"] == expected["steps"] == 6
    with pytest.raises(SIGTERMException):
        came_to(tmp_path, Terminated(hook), version="stopped")
    stopped = json.loads((tmp_path / "stopped" / "summary.json").read_text())
    assert stopped["status"] == "terminated"
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    assert came_to(tmp_path, version="stopped", ckpt_path=last) == expected
    same_record(tmp_path / "stopped", tmp_path / "alone")


def test_a_run_killed_before_its_summary_has_one_when_it_is_resumed(tmp_path):
    expected = came_to(tmp_path, version="killed")
    (tmp_path / "killed" / "summary.json").unlink()
    shutil.copytree(tmp_path / "killed" / "trajectory", tmp_path / "before" / "trajectory")
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert came_to(tmp_path, version="killed", ckpt_path=last) == expected
    same_record(tmp_path / "killed", tmp_path / "before")
