"""Two nodes of torchrun, and a sharded checkpoint that another number of processes goes on from."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from helpers.runs import ROOT, TINY

from lit_gamma import trajectory

RUN = Path("runs/anchor/gamma0.8-seed1")
LAST = RUN / "checkpoints/last.ckpt"
CONSTANT = ["--model.optimizer.warmup_steps=2", "--model.optimizer.final_lr_ratio=1"]


def launch(workspace: Path, nodes: int, processes: int, *arguments: str) -> list[subprocess.Popen]:
    """Starts the nodes of a sharded (FSDP2) fit, each a torchrun of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    strategy = f"data_parallel_size={nodes * processes} tensor_parallel_size=1".split()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}"),
        *(f"--nproc-per-node={processes}", "--master-addr=127.0.0.1", f"--master-port={port}"),
    ]
    fit = [
        *("-m", "lit_gamma", "fit", *TINY, *CONSTANT, f"--trainer.num_nodes={nodes}"),
        *(f"--trainer.devices={processes}", "--trainer.strategy=ModelParallelStrategy"),
        *(f"--trainer.strategy.{part}" for part in strategy),
        *arguments,
    ]
    return [
        subprocess.Popen(
            [*command, f"--node-rank={rank}", *fit],
            cwd=workspace,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                "PYTHONFAULTHANDLER": "1",  # A rank that aborts says where.
            },
        )
        for rank in range(nodes)
    ]


@pytest.mark.slow
def test_two_processes_on_two_nodes_go_on_as_three_and_again_as_two(workspace, command_line):
    whole = ["--trainer.max_steps=6", "--trainer.logger.init_args.version=whole"]
    command_line("fit", *TINY, *CONSTANT, "--data.batch_size=48", *whole)
    for nodes, processes, steps in [(2, 1, 2), (1, 3, 4), (2, 1, 6)]:
        size = 48 // (nodes * processes)
        arguments = [f"--trainer.max_steps={steps}", f"--data.batch_size={size}"]
        arguments += [f"--ckpt_path={LAST}"] if LAST.exists() else []
        started = launch(workspace, nodes, processes, *arguments)
        assert [process.wait(timeout=120) for process in started] == [0] * nodes
    assert sorted(path.name for path in RUN.parent.iterdir()) == [RUN.name, "whole"]
    expected, found = trajectory.load(RUN.parent / "whole"), trajectory.load(RUN)
    for table in ("token_loss", "weight_norms"):
        rows = found[table].drop(columns="spectral_norm_error", errors="ignore")
        alone = expected[table].drop(columns="spectral_norm_error", errors="ignore")
        pandas.testing.assert_frame_equal(rows, alone, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_two_nodes_that_are_told_to_end_save_the_same_step(workspace):
    nodes = launch(workspace, 2, 1, "--trainer.max_steps=100000")
    try:
        deadline = time.monotonic() + 120
        while not (RUN / "trajectory/token_loss.arrow").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for node in nodes:
            node.send_signal(signal.SIGTERM)
        for node in nodes:
            node.wait(timeout=60)
    finally:
        for node in nodes:
            node.kill()
    assert (LAST / "meta.pt").is_file()
    assert '"status": "terminated"' in (RUN / "summary.json").read_text()


STARVES = """
import os, threading, time
from pathlib import Path

def starve():
    while True:
        for thread in Path("/proc/self/task").iterdir():
            if "gloo_runloop" in (thread / "comm").read_text():
                os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))
        time.sleep(0.1)

threading.Thread(target=starve, daemon=True).start()
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="SCHED_IDLE is Linux's")
def test_processes_end_well_whose_collectives_let_go_late(workspace):
    Path("callbacks/starves.py").write_text(STARVES)
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        (node,) = launch(workspace, 1, 3, "--trainer.max_steps=2")
        assert node.wait(timeout=240) == 0
    finally:
        for process in busy:
            process.kill()


KILLS = """
import os, signal, torch

save = torch.save

def killed_at_step_4(saved, file):
    if str(file).endswith("last.ckpt/meta.pt") and saved["global_step"] == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(saved, file)

torch.save = killed_at_step_4
"""


@pytest.mark.slow
def test_a_sharded_run_killed_as_it_writes_goes_on_from_the_checkpoint_before(workspace):
    base, kills = Path("configs/base.yaml"), Path("callbacks/kills.py")
    every = "every_n_train_steps: 500"
    assert every in base.read_text()
    base.write_text(base.read_text().replace(every, "every_n_train_steps: 2"))
    kills.write_text(KILLS)
    (killed,) = launch(workspace, 1, 2, "--trainer.max_steps=100")
    assert killed.wait(timeout=120) != 0
    assert sorted(path.name for path in LAST.parent.glob("last*")) == ["last.ckpt", "last.ckpt.old"]
    assert not (LAST / "meta.pt").exists()
    kills.unlink()
    (resumed,) = launch(workspace, 1, 2, "--trainer.max_steps=6", f"--ckpt_path={LAST}")
    assert resumed.wait(timeout=120) == 0
    assert [path.name for path in LAST.parent.glob("last*")] == ["last.ckpt"]
    assert torch.load(LAST / "meta.pt", weights_only=False)["global_step"] == 6
    assert [path.name for path in RUN.parent.iterdir()] == [RUN.name]
    assert list(trajectory.load(RUN)["token_loss"]["step"]) == list(range(6))
