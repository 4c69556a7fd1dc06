"""Every run has a folder of its own, and a resumed one goes on in its own."""

from __future__ import annotations

import multiprocessing
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.runs import TINY
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import InputError, trajectory
from lit_gamma.cli.run_folder import RunTrainer, own_folder

RUN = Path("runs/anchor/gamma0.8-seed1")


def trainer(logger, **options) -> RunTrainer:
    return RunTrainer(
        accelerator="cpu",
        logger=logger,
        enable_progress_bar=False,
        **{"enable_checkpointing": False, **options},
    )


def wandb_logger(root: Path) -> WandbLogger:
    pytest.importorskip("wandb")
    return WandbLogger(save_dir=root / "bias", project="a", offline=True)


def mlflow_logger(root: Path) -> MLFlowLogger:
    pytest.importorskip("mlflow")
    return MLFlowLogger(tracking_uri=f"file:{root}/store")


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


@pytest.mark.parametrize(
    ("logger", "folder"),
    [
        (lambda root: False, "runs"),
        (wandb_logger, "bias/a"),
        (mlflow_logger, "lit_gamma_runs"),
        (lambda root: [wandb_logger(root), CSVLogger(root / "tables", "b")], "tables/b"),
    ],
    ids=["none", "wandb", "mlflow", "several"],
)
def test_a_run_has_a_folder_of_its_own_whatever_logs_it(tmp_path, monkeypatch, logger, folder):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    kept = [ModelCheckpoint(), ModelCheckpoint()]
    first, second = (
        trainer(
            logger(tmp_path), default_root_dir=tmp_path, callbacks=[c], enable_checkpointing=True
        )
        for c in kept
    )
    with own_folder(first, None, "new"), own_folder(second, None, "new"):
        folders = [tmp_path / folder / "new", tmp_path / folder / "new-2"]
        assert [Path(t.log_dir) for t in (first, second)] == folders
        assert [Path(c.dirpath) for c in kept] == [path / "checkpoints" for path in folders]
        assert all(path.is_dir() for path in folders)


def test_a_name_is_free_where_every_logger_has_it_free(tmp_path):
    loggers = [TensorBoardLogger(tmp_path / "x", "a"), CSVLogger(tmp_path / "y", "a")]
    (tmp_path / "y" / "a" / "new").mkdir(parents=True)
    with own_folder(trainer(loggers), None, "new"):
        made = {str(p.relative_to(tmp_path)) for p in tmp_path.glob("*/a/*")}
        assert made == {"x/a/new-2", "y/a/new-2", "y/a/new"}
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.glob("**/*")] == ["y", "y/a", "y/a/new"]


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


def test_two_fits_do_not_go_on_in_one_folder(tmp_path):
    last = tmp_path / "a" / "b" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"global_step": 1}, last)
    one, two = (trainer(TensorBoardLogger(tmp_path, "a")) for _ in range(2))
    with own_folder(one, str(last), "new"):
        fork = multiprocessing.get_context("fork")
        started = fork.Event()
        worker = fork.Process(target=lambda: started.set() or time.sleep(60))
        worker.start()
        assert started.wait(30)
        with (
            pytest.raises(InputError, match=r"a/b: another fit goes on in this folder"),
            own_folder(two, str(last), "new"),
        ):
            pass
    with own_folder(two, str(last), "new"):  # Whatever the first one's worker does.
        pass
    worker.kill()


@pytest.mark.slow
def test_a_run_goes_on_where_its_folder_was_moved_or_copied_to(workspace, command_line):
    command_line("fit", *TINY, "--trainer.max_steps=20")
    before = trajectory.load(RUN)
    shutil.copytree("runs", "copied")
    Path("runs").rename("moved")
    last = RUN.relative_to("runs") / "checkpoints" / "last.ckpt"
    for steps, root in [(25, Path("copied")), (30, Path("moved"))]:  # The copy's original is there.
        place = f"--trainer.logger.init_args.save_dir={root}"
        command_line(
            "fit", *TINY, place, f"--trainer.max_steps={steps}", f"--ckpt_path={root / last}"
        )
        run = (root / last).parents[1]
        record = trajectory.load(run)
        for name, table in before.items():
            pd.testing.assert_frame_equal(*(t[t["step"] < 20] for t in (record[name], table)))
        assert record["token_loss"]["step"].max() == steps - 1
        assert not list(run.glob("run-*"))
        assert [path.name for path in run.glob("checkpoints/last*")] == ["last.ckpt"]
        assert torch.load(root / last, weights_only=False)["global_step"] == steps
    assert trajectory.load(Path("copied", *RUN.parts[1:]))["token_loss"]["step"].max() == 24
    command_line("fit", *TINY, "--trainer.max_steps=35", f"--ckpt_path={'moved' / last}")
    assert list(trajectory.load(RUN)["token_loss"]["step"]) == list(range(35))


@pytest.mark.slow
def test_with_other_loggers_a_run_goes_on_in_its_folder_too(workspace, command_line, capsys):
    wandb = pytest.importorskip("wandb")
    Path("loggers.yaml").write_text(
        "trainer: {logger: ["
        "{class_path: WandbLogger,"
        f" init_args: {{save_dir: {workspace}/bias, project: a, name: null, offline: true}}}},"
        "{class_path: CSVLogger, init_args: {save_dir: tables, name: a}}]}"
    )
    flags = [*TINY, "--config=loggers.yaml", "--trainer.log_every_n_steps=1"]
    command_line("fit", *flags, "--trainer.max_steps=20")
    run = Path("tables/a/gamma0.8-seed1")
    said = capsys.readouterr().out
    assert f"look at it   {run}/metrics.csv" in said
    assert f"look at it   wandb sync {workspace}/bias/wandb/offline-run-" in said
    assert "tensorboard" not in said
    assert wandb.run.name == run.name
    wandb.finish()  # A process has one run at a time.
    kept = run / "checkpoints" / "last.ckpt"
    command_line("fit", *flags, "--trainer.max_steps=30", f"--ckpt_path={kept}")
    wandb.finish()
    assert list(trajectory.load(run)["token_loss"]["step"]) == list(range(30))
    parts = [pd.read_csv(run / name) for name in ("metrics-to-step20.csv", "metrics.csv")]
    steps = [list(part.dropna(subset="train/loss")["step"]) for part in parts]
    assert steps[0] == list(range(20))
    assert len(steps[1]) == 10
    assert steps[1][0] >= 20
    assert [path.name for path in run.parent.iterdir()] == [run.name]


@pytest.mark.slow
def test_overfitting_sees_the_same_batches_again(workspace, command_line):
    flags = ["--trainer.overfit_batches=2", "--model.optimizer.warmup_steps=5"]
    command_line("fit", *TINY[:-2], *TINY[-1:], *flags, "--trainer.max_steps=120",
                 "--trainer.val_check_interval=1", "--trainer.enable_progress_bar=false",
                 "--model.optimizer.lr=0.01")  # fmt: skip
    losses = trajectory.load(RUN)["token_loss"]["mean"]
    assert losses.iloc[0] > 4.5
    assert losses.iloc[-1] < 1


def test_a_resume_that_is_refused_replaces_no_checkpoint(workspace, command_line, capsys):
    command_line("fit", *TINY, "--trainer.max_steps=5")
    run = Path("runs/anchor/gamma0.8-seed1")
    saved = {path: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    again = [f"--ckpt_path={run / 'checkpoints/last.ckpt'}", "--trainer.max_steps=9"]
    with pytest.raises(SystemExit, match="cannot go on in batches of 24"):
        command_line("fit", *TINY, *again, "--data.batch_size=24")
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == saved
    assert "is lost" not in capsys.readouterr().err
