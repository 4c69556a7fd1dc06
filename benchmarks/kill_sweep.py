"""Does a sweep that is killed again and again end with the table of one left alone?

    python benchmarks/kill_sweep.py --kills 5

One sweep of four runs is left alone. Another is killed (SIGKILL) at random moments, in turn the
whole process group and the parent alone, and started again each time. Its table must then be the
other's, row for row and value for value, but for the seconds. Matrices take turns at a fixed pace,
as only such a record repeats exactly.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa

ROOT = Path(__file__).parents[1]
TINY = """
extends: anchor.yaml
model: {transformer: {d_model: 16}}
data: {init_args: {n_train: 6400, n_val: 64, batch_size: 16}}
trainer:
  accelerator: cpu
  max_steps: 600
  val_check_interval: 50
  callbacks:
    - {class_path: Condensation, init_args: {matrices_per_step: 0.5}}
    - {class_path: EffectiveRank, init_args: {matrices_per_step: 0.5}}
    - {class_path: WeightNorms, init_args: {schedule: {every: 1}}}
    - {class_path: TokenLoss, init_args: {schedule: {every: 1}}}
    - {class_path: RunSummary}
    - class_path: Checkpoints
      init_args: {save_last: true, save_on_exception: true, every_n_train_steps: 100}
"""
SWEEP = """-m lit_gamma sweep --config configs/tiny.yaml --jobs 2
--grid model.gamma=0.3,0.8 --grid model.optimizer.lr=1e-3,3e-3"""
COMMAND = [sys.executable, *SWEEP.split()]


def sweep(workspace: Path, out: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, "--out", out],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def table(workspace: Path, out: str) -> pd.DataFrame:
    path = workspace / out / "sweep.arrow"
    found = pa.ipc.open_stream(path.read_bytes()).read_pandas()
    return found.drop(columns="seconds", errors="ignore")


def kill(process: subprocess.Popen[bytes], alone: bool) -> None:
    (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    chosen = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        for name in ("configs", "callbacks"):
            (workspace / name).symlink_to(ROOT / name)
        (workspace / "configs").unlink()
        (workspace / "configs").mkdir()
        for path in (ROOT / "configs").glob("*.yaml"):
            (workspace / "configs" / path.name).symlink_to(path)
        (workspace / "configs" / "tiny.yaml").write_text(TINY)

        began = time.monotonic()
        assert sweep(workspace, "alone").wait() == 0
        seconds = time.monotonic() - began
        expected = table(workspace, "alone")
        print(f"left alone: {len(expected)} runs in {seconds:.0f} s", flush=True)

        for i in range(args.kills):
            process = sweep(workspace, "killed")
            time.sleep(after := chosen.uniform(0.1, 0.4) * seconds)
            if process.poll() is not None:
                print(f"it had ended before kill {i + 1}", flush=True)
                break
            kill(process, alone=i % 2 == 1)
            what = "the parent alone" if i % 2 else "the group"
            ended = len(list((workspace / "killed").glob("*/summary.json")))
            checkpoints = len(list((workspace / "killed").glob("*/checkpoints/last.ckpt")))
            print(
                f"killed {what} after {after:.0f} s, with {checkpoints} checkpoints and {ended} "
                "summaries",
                flush=True,
            )
        assert sweep(workspace, "killed").wait() == 0
        pd.testing.assert_frame_equal(table(workspace, "killed"), expected, check_exact=True)
        print(f"the tables are equal: {expected.shape[0]} rows of {expected.shape[1]} values")


if __name__ == "__main__":
    main()
