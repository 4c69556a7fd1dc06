"""What a run that is killed at a random step leaves behind, and what its resumption records.

    python benchmarks/kill_and_resume.py --kills 20

One run is left alone. Others of the same seed are killed (SIGKILL) at a random step. The record of
each must open and end at most one flush interval before the kill; after the run is resumed from its
last checkpoint, the record must equal that of the run left alone, bit for bit, and so must the
weights. ``--folder`` puts the runs on another file system than the temporary one.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import signal
import tempfile
import time
import warnings
from pathlib import Path

import lightning
import pandas
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig, trajectory
from lit_gamma.callbacks import Checkpoints, Condensation, EffectiveRank, TokenLoss, WeightNorms
from lit_gamma.data import AnchorComposition
from lit_gamma.trajectory.recorder import FLUSH_SECONDS, FLUSH_STEPS

STEPS, CHECKPOINT_EVERY = 400, 150


class StepFile(lightning.Callback):
    """Tells the parent, at the start of each batch, how many steps the run has taken."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer, *_):
        self.path.write_text(str(trainer.global_step))


def fit(root: Path, version: int, ckpt_path: Path | None = None) -> None:
    lightning.seed_everything(1, verbose=False)
    recorded = [
        Condensation(matrices_per_step=0.5),
        EffectiveRank(matrices_per_step=2.0),
        WeightNorms(),
        TokenLoss(),
    ]
    keep = Checkpoints(root, every_n_train_steps=CHECKPOINT_EVERY, filename="last")
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        max_epochs=-1,
        logger=TensorBoardLogger(root, name="", version=version),
        callbacks=[*recorded, keep, StepFile(root / "step")],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    shape = TransformerConfig(110, 9, d_model=32, gate="none", position="learned")
    module = LanguageModel(shape, 0.8, optimizer=OptimizerConfig(warmup_steps=50))
    trainer.fit(module, AnchorComposition(n_train=3200, batch_size=32), ckpt_path=ckpt_path)
    torch.save(module.state_dict(), root / f"weights_{version}.pt")


def process(*args: object) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=fit, args=args)
    child.start()
    return child


def kill_at(step: int, root: Path) -> int:
    """Kills a run at about a step; returns the steps it had taken."""
    child = process(root, 0)
    seen = root / "step"
    while child.is_alive() and not (seen.exists() and int(seen.read_text() or 0) >= step):
        time.sleep(0.001)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    return int(seen.read_text() or step)


def check(
    expected: dict[str, pandas.DataFrame], weights: dict, step: int, beside: str | None
) -> str:
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        root = Path(folder)
        killed = kill_at(step, root)
        left = trajectory.load(root / "version_0")
        behind = max(killed - table["step"].max() for table in left.values())
        assert behind <= FLUSH_STEPS, f"{behind} steps are missing"
        resumed = process(root, 1, root / "last.ckpt")
        resumed.join()
        assert resumed.exitcode == 0
        got = trajectory.load(root / "version_1")
        assert set(got) == set(expected)
        for name, table in expected.items():
            pandas.testing.assert_frame_equal(got[name], table, check_exact=True)
        ours = torch.load(root / "weights_1.pt")
        assert all(torch.equal(ours[name], weight) for name, weight in weights.items())
    return f"killed at step {killed}: the record ended {behind} steps before, the rest is equal"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--folder", help="where the runs go; the temporary folder if not given")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # A fork of a process with worker threads hangs.
    chosen = random.Random(0)
    print(f"flush every {FLUSH_STEPS} steps or {FLUSH_SECONDS:.0f} s")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        alone = process(Path(folder), 0)
        alone.join()
        expected = trajectory.load(Path(folder, "version_0"))
        weights = torch.load(Path(folder, "weights_0.pt"))
    for _ in range(args.kills):
        step = chosen.randint(CHECKPOINT_EVERY + 1, STEPS - 1)
        print(check(expected, weights, step, args.folder), flush=True)


if __name__ == "__main__":
    main()
