"""Which record survives: a curve of 50 values a step, logged by ours and by four loggers.

    pip install wandb mlflow-skinny && python benchmarks/records.py

A fit of 1,000 steps is killed (SIGKILL) at ten random moments, each time while it trains, and goes
on from its last checkpoint, one in 50 steps, as each logger's documentation has a run continued:
TensorBoard in the same folder, W&B and MLflow under the same run id, CSV in the same folder and in
one for each part. The values are known, so that what can be read afterwards is compared with what
was logged. Milliseconds per step are those of fits that are left alone, above those of the same fit
without a logger.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import signal
import struct
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lit_gamma import InputError, trajectory
from lit_gamma.callbacks import Checkpoints, TrajectoryCallback

STEPS, ITEMS, CHECKPOINT_EVERY, KILLS = 1000, 50, 50, 10
NAMES = [f"curve/{item}" for item in range(ITEMS)]
Row = tuple[int, int, float]
"""Step, item, value."""


def curve(step: Any) -> Any:
    """The values of a step, float32."""
    return np.sin(np.asarray(step)[..., None] / (1 + np.arange(ITEMS))).astype(np.float32)


class Curve(TrajectoryCallback):
    """Ours."""

    def items(self, pl_module):
        return {"item": range(ITEMS)}, NAMES

    def observe(self, trainer, pl_module):
        return {"value": torch.from_numpy(curve(self.run.step))}


class Logged(lightning.Callback):
    """Theirs."""

    def on_train_batch_end(self, trainer, *_):
        values = dict(zip(NAMES, curve(trainer.global_step).tolist(), strict=True))
        trainer.logger.log_metrics(values, trainer.global_step)


class Pace(lightning.Callback):
    """Makes steps as long as they are asked to be, and tells the parent how many were taken."""

    def __init__(self, pause: float, taken: Any) -> None:
        self.pause, self.taken = pause, taken

    def on_train_batch_end(self, trainer, *_):
        self.taken.value = trainer.global_step
        time.sleep(self.pause)


class Line(lightning.LightningModule):
    """Nothing to speak of: what is measured is the record."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def logger_of(variant: str, root: Path, part: int) -> Logger | bool:
    """The logger of a part of the run: as a user continues it."""
    if variant == "TensorBoard":
        return TensorBoardLogger(root, "", version="run", default_hp_metric=False)
    if variant.startswith("CSV"):
        return CSVLogger(root, "", version="run" if variant.endswith("same folder") else part)
    if variant == "W&B, offline":
        return WandbLogger(save_dir=root, offline=True, id="run", resume="allow")
    if variant == "MLflow, files":
        known = next(root.glob("store/*/*/meta.yaml"), None)
        return MLFlowLogger(tracking_uri=f"file:{root}/store", run_id=known and known.parent.name)
    return False


def fit(variant: str, root: Path, part: int, pause: float, taken: Any, seconds: Any) -> None:
    """One part of the run, in a process of its own."""
    logger, last = logger_of(variant, root, part), root / "last.ckpt"
    of_record = {"lit-gamma": [Curve()], "none": []}.get(variant, [Logged()])
    keep = Checkpoints(root, every_n_train_steps=CHECKPOINT_EVERY, filename="last")
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, logger=logger, default_root_dir=root,
        callbacks=[*of_record, keep, Pace(pause, taken)], limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    began = time.monotonic()
    trainer.fit(Line(), DataLoader(torch.ones(STEPS, 1)), ckpt_path=last if part else None)
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()
    seconds.value = time.monotonic() - began


class Run:
    """A run of a variant, part after part."""

    def __init__(self, variant: str, root: Path, pause: float) -> None:
        self.variant, self.root, self.pause, self.parts = variant, root, pause, 0

    def go(self, kill_at: int = STEPS + 1) -> tuple[int, float]:
        """Runs to the end, or kills it at a step; returns the steps taken, and the seconds."""
        taken, seconds = multiprocessing.Value("i", 0), multiprocessing.Value("d", 0.0)
        child = multiprocessing.get_context("fork").Process(
            target=fit, args=(self.variant, self.root, self.parts, self.pause, taken, seconds)
        )
        child.start()
        while child.is_alive() and taken.value < kill_at:
            time.sleep(0.001)
        if child.is_alive() and kill_at <= STEPS:
            time.sleep(random.random() * self.pause)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == (0 if kill_at > STEPS else -signal.SIGKILL)
        self.parts += 1
        return taken.value, seconds.value

    def rows(self) -> Iterable[Row]:
        """All that can be read of it."""
        if self.variant == "lit-gamma":
            table = trajectory.load(self.root)["curve"]
            return table[["step", "item", "value"]].itertuples(index=False, name=None)
        readers = {"T": of_tensorboard, "C": of_csv, "W": of_wandb, "M": of_mlflow}
        return readers[self.variant[0]](self.root)

    def bytes(self) -> int:
        """Size of its files but the checkpoint."""
        files = (path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())
        return sum(path.stat().st_size for path in files if path.suffix != ".ckpt")


def of_tensorboard(root: Path) -> Iterator[Row]:
    events = EventAccumulator(str(root / "run"), {"scalars": 0}).Reload()
    for item, name in enumerate(NAMES):
        if name in events.Tags()["scalars"]:
            yield from ((point.step, item, point.value) for point in events.Scalars(name))


def of_csv(root: Path) -> Iterator[Row]:
    for path in sorted(root.glob("*/metrics.csv")):
        table = pd.read_csv(path)
        for item, name in enumerate(NAMES):
            yield from zip(table["step"], [item] * len(table), table[name], strict=True)


def of_wandb(root: Path) -> Iterator[Row]:
    """What ``wandb sync`` would send: each part has a file, a log of LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    for path in sorted(root.glob("wandb/offline-run-*/run-*.wandb")):
        data, at, block, part = path.read_bytes(), 7, 2**15, b""
        while at + 7 <= len(data):
            if block - at % block < 7:
                at += block - at % block
                continue
            _, length, kind = struct.unpack("<IHB", data[at : at + 7])
            part += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4) and at <= len(data):  # The whole of a record, or its end.
                items = Record.FromString(part).history.item
                row = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                found = (item for item, name in enumerate(NAMES) if name in row)
                yield from ((row["trainer/global_step"], item, row[NAMES[item]]) for item in found)
                part = b""


def of_mlflow(root: Path) -> Iterator[Row]:
    from mlflow import MlflowClient

    (run,) = root.glob("store/*/*/meta.yaml")
    client = MlflowClient(f"file:{root}/store")
    for item, name in enumerate(NAMES):
        history = client.get_metric_history(run.parent.name, name)
        yield from ((point.step, item, point.value) for point in history)


def tested(variant: str, kills: list[int], pause: float) -> dict[str, str]:
    """What a run that is killed at these steps leaves."""
    with tempfile.TemporaryDirectory() as folder:
        run, behind = Run(variant, Path(folder), pause), []
        for step in kills:
            taken, _ = run.go(step)
            time.sleep(1)  # Time for what W&B's own process has still to write.
            behind.append(max(0, taken - newest(run)))
        run.go()
        rows = [row for row in run.rows() if row[0] > 0]
        size = run.bytes()
    counts = Counter((step, item) for step, item, _ in rows)
    wrong = sum(abs(value - curve(step)[item]) > 1e-6 for step, item, value in rows)
    return {
        "behind at a kill, mean (most)": f"{mean(behind):.0f} ({max(behind)})",
        "rows at the end": f"{100 * len(counts) / (STEPS * ITEMS):.1f} %",
        "twice or more": f"{100 * sum(n > 1 for n in counts.values()) / (STEPS * ITEMS):.1f} %",
        "wrong": str(wrong),
        "MB": f"{size / 1e6:.2f}",
    }


def newest(run: Run) -> int:
    """The last step that can be read; 0 if nothing can."""
    try:
        return max((step for step, *_ in run.rows()), default=0)
    except (OSError, KeyError, InputError):  # There is no file yet.
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds added to each step")
    parser.add_argument("--rounds", type=int, default=3, help="fits that are timed")
    args = parser.parse_args()
    os.environ |= {"MLFLOW_ALLOW_FILE_STORE": "true", "WANDB_SILENT": "true"}
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # A fork of a process with worker threads hangs.
    kills = sorted(random.Random(0).sample(range(CHECKPOINT_EVERY + 1, STEPS), KILLS))
    print(f"killed at about steps {', '.join(map(str, kills))}")
    variants = ["lit-gamma", "TensorBoard", "CSV, same folder", "CSV, a folder for each part"]
    variants += ["W&B, offline", "MLflow, files"]
    timed: dict[str, list[float]] = {variant: [] for variant in ["none", *variants]}
    for _ in range(args.rounds):
        for variant, found in timed.items():
            with tempfile.TemporaryDirectory() as folder:
                found.append(Run(variant, Path(folder), 0).go()[1] * 1e3 / STEPS)
    for variant in variants:
        pairs = zip(timed[variant], timed["none"], strict=True)
        added = [ours - without for ours, without in pairs]
        row = tested(variant, kills, args.pause)
        row["ms per step"] = f"{median(added):.1f} ({min(added):.1f} .. {max(added):.1f})"
        if variant == variants[0]:
            print("|", " | ".join(["record", *row]), "|")
        print("|", " | ".join([variant, *row.values()]), "|", flush=True)
    print(f"a step without a logger: {median(timed['none']):.2f} ms")


if __name__ == "__main__":
    main()
