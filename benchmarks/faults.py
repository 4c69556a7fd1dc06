"""What faults cost a run: a table, one row per fault, with what was lost.

    python benchmarks/faults.py --small /mnt/small

Every row makes a run of the anchor task by the command line, in a process of its own, and breaks
something. ``--small`` names an empty file system of some 700 KB, which the rows of a full disk need
(``mount -t tmpfs -o size=700k tmpfs /mnt/small``); without it they are left out. Kills at random
steps are in ``kill_and_resume.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas
import torch

from lit_gamma import InputError, trained, trajectory
from lit_gamma.files import check_checkpoint

ROOT = Path(__file__).resolve().parents[1]
STEPS = 240
RUN = Path("runs/anchor/gamma0.8-seed1")
FLAGS = [
    "--config=configs/anchor.yaml",
    "--model.transformer.d_model=32",
    "--data.n_train=4096",
    "--data.n_val=64",
    "--data.batch_size=64",
    f"--trainer.max_steps={STEPS}",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.val_check_interval=50",
]


class Fit:
    """A fit in a process of its own, in a workspace.

    Args:
        workspace: Gets the configs.
        flags: Added to :data:`FLAGS`.
    """

    def __init__(self, workspace: Path, *flags: str) -> None:
        for folder in ("configs", "callbacks"):
            if not (workspace / folder).exists():
                shutil.copytree(ROOT / folder, workspace / folder)
        self.workspace = workspace
        self.run = workspace / RUN
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lit_gamma", "fit", *FLAGS, *flags],
            cwd=workspace,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def once_recorded(self, step: int) -> Fit:
        """Waits until the record has come to a step."""
        while self.process.poll() is None and _last_step(self.run) < step:
            time.sleep(0.05)
        return self

    def end(self) -> tuple[int, str, str]:
        """Exit code, status of the summary, and what was printed."""
        printed, _ = self.process.communicate(timeout=300)
        summary = self.run / "summary.json"
        status = json.loads(summary.read_text())["status"] if summary.is_file() else "no summary"
        assert "Traceback" not in printed or status.startswith(("RuntimeError", "Dist")), printed
        return self.process.returncode, status, printed


def _last_step(run: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # The last batch may be half there at this moment.
        try:
            return int(trajectory.load(run, ["token_loss"])["token_loss"]["step"].max())
        except (InputError, KeyError):
            return -1


def _equal(run: Path, expected: Path) -> str:
    """Compares the losses, which say that weights and order of the data are the same.

    Ctrl-C may come between an optimizer step and the end of its batch, whose losses are then lost.
    """
    ours, theirs = (
        trajectory.load(path, ["token_loss"])["token_loss"].set_index("step")
        for path in (run, expected)
    )
    lost = sorted(set(theirs.index) - set(ours.index))
    assert len(lost) <= 1
    pandas.testing.assert_frame_equal(ours, theirs.drop(index=lost), check_exact=True)
    of_a_batch = f" but for the losses of batch {lost[0]}, which was cut off" if lost else ""
    return f"resumed, equal to the run left alone{of_a_batch}"


def a_signal(number: signal.Signals) -> Callable[[Path, Path], str]:
    def row(workspace: Path, alone: Path) -> str:
        fit = Fit(workspace).once_recorded(60)
        fit.process.send_signal(number)
        code, status, _ = fit.end()
        last = fit.run / "checkpoints" / "last.ckpt"
        if not last.exists():
            return f"exit {code}, {status}; record to step {_last_step(fit.run)}, no checkpoint"
        resumed = Fit(workspace, f"--ckpt_path={last}")
        resumed.end()
        return f"exit {code}, {status}; {_equal(resumed.run, alone)}"

    return row


def a_full_disk(workspace: Path, alone: Path, small: Path) -> str:
    fit = Fit(workspace, f"--trainer.logger.init_args.save_dir={small}")
    fit.run = small / "anchor" / RUN.name
    code, _, printed = fit.end()
    holes = re.findall(r"not recorded +(\w+): steps (.*)", printed)
    kept = trajectory.load(fit.run)
    drafts = [*fit.run.rglob("*.tmp")]
    assert code == 0
    assert kept
    assert not drafts
    shutil.rmtree(small / "anchor")
    return (
        f"exit {code}; trains to the end; {len(kept)} tables whole but for their holes: {holes[:2]}"
    )


def a_deleted_folder(workspace: Path, alone: Path) -> str:
    fit = Fit(workspace).once_recorded(60)
    shutil.rmtree(fit.run / "trajectory")
    code, status, _ = fit.end()
    holes = json.loads((fit.run / "summary.json").read_text())["holes"]
    steps = trajectory.load(fit.run)["weight_norms"]["step"]
    return (
        f"exit {code}, {status}; record from step {steps.min()} on; lost: what was deleted, and "
        f"weight_norms {holes['weight_norms']}"
    )


def two_at_once(workspace: Path, alone: Path) -> str:
    fits = [Fit(workspace) for _ in range(4)]
    codes = [fit.process.wait(300) for fit in fits]
    runs = sorted((workspace / RUN.parent).iterdir())
    assert all(_equal(run, alone).endswith("alone") for run in runs)
    assert codes == [0] * 4
    return f"four fits of one name: {len(runs)} folders, all equal to the run left alone"


def flipped_bits(workspace: Path, alone: Path) -> str:
    chosen = random.Random(0)
    wrong = said = 0
    expected = trajectory.load(alone)
    for _ in range(200):
        name = chosen.choice(sorted(expected))
        copy = workspace / "run" / "trajectory"
        shutil.copytree(alone / "trajectory", copy)
        _flip(copy / f"{name}.arrow", chosen)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            read = trajectory.load(workspace / "run", [name]).get(name)
        whole = read is not None and read.equals(expected[name])
        said += bool(warned)
        wrong += not whole and not warned
        shutil.rmtree(workspace / "run")
    return f"200 flips of one bit in a record: {said} said, {wrong} wrong values without a word"


def flipped_checkpoint(workspace: Path, alone: Path) -> str:
    chosen = random.Random(0)
    refused = wrong = 0
    path = workspace / "flipped.ckpt"
    expected = trained.load(alone / "checkpoints" / "last.ckpt").model.state_dict()
    for _ in range(100):
        shutil.copy(alone / "checkpoints" / "last.ckpt", path)
        _flip(path, chosen)
        try:
            check_checkpoint(path)
            read = trained.load(path).model.state_dict()
            wrong += any(not torch.equal(read[name], value) for name, value in expected.items())
        except InputError:
            refused += 1
    return f"100 flips of one bit in a checkpoint: {refused} refused, {wrong} read as other weights"


def _flip(path: Path, chosen: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
    path.write_bytes(content)


def a_dead_rank(workspace: Path, alone: Path) -> str:
    fit = Fit(workspace, "--trainer.devices=2", "--trainer.strategy=ddp").once_recorded(20)
    ranks = subprocess.run(
        ["pgrep", "-P", str(fit.process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(ranks.stdout.split()[0]), signal.SIGKILL)
    code, status, _ = fit.end()
    return f"exit {code}, {status[:60]}...; record to step {_last_step(fit.run)}"


def a_dead_worker(workspace: Path, alone: Path) -> str:
    Path(workspace, "callbacks").mkdir(exist_ok=True)
    Path(workspace, "callbacks", "dies.py").write_text(
        "import os, signal\n"
        "from lit_gamma.data import AnchorComposition\n"
        "class Dies(AnchorComposition):\n"
        "    def train_dataloader(self):\n"
        "        loader = super().train_dataloader()\n"
        "        get = loader.dataset.__class__.__getitem__\n"
        "        class Data(loader.dataset.__class__):\n"
        "            def __getitem__(self, index):\n"
        "                self.n = getattr(self, 'n', 0) + 1\n"
        "                if self.n == 60: os.kill(os.getpid(), signal.SIGKILL)\n"
        "                return get(self, index)\n"
        "        loader.dataset.__class__ = Data\n"
        "        return type(loader)(loader.dataset, sampler=loader.sampler, batch_size=None,\n"
        "                            num_workers=1)\n"
    )
    fit = Fit(workspace, "--data=callbacks.dies.Dies", *FLAGS[2:5])
    code, status, _ = fit.end()
    saved = (fit.run / "checkpoints" / "last.ckpt").exists()
    return (
        f"exit {code}, {status[:60]}...; record to step {_last_step(fit.run)}, checkpoint {saved}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=Path, help="an empty file system of some 700 KB")
    parser.add_argument("--rows", nargs="*", help="words of the rows to run; all by default")
    args = parser.parse_args()
    rows: dict[str, Callable[[Path, Path], str]] = {
        "SIGINT (Ctrl-C)": a_signal(signal.SIGINT),
        "SIGTERM": a_signal(signal.SIGTERM),
        "SIGKILL before a checkpoint": a_signal(signal.SIGKILL),
        "trajectory/ deleted": a_deleted_folder,
        "started at once": two_at_once,
        "bits of a record": flipped_bits,
        "bits of a checkpoint": flipped_checkpoint,
        "a rank dies": a_dead_rank,
        "a data worker dies": a_dead_worker,
    }
    if args.small:
        rows["disk full"] = lambda workspace, alone: a_full_disk(workspace, alone, args.small)
    with tempfile.TemporaryDirectory() as folder:
        left_alone = Fit(Path(folder))
        assert left_alone.end()[:2] == (0, "finished")
        for name, row in rows.items():
            if args.rows and not any(word in name for word in args.rows):
                continue
            with tempfile.TemporaryDirectory() as workspace:
                print(f"{name:<28} {row(Path(workspace), left_alone.run)}", flush=True)


if __name__ == "__main__":
    main()
