"""A grid of ordinary runs: each as it would be alone, none twice, whatever happens to the sweep."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from helpers.runs import ROOT, TINY

from lit_gamma.cli.lightning_cli import command_line as read_command
from lit_gamma.cli.sweep import pool
from lit_gamma.cli.sweep.display import last_line, share_done
from lit_gamma.cli.sweep.grid import axes, cells, name_of
from lit_gamma.cli.sweep.plan import FitConfigs, plan
from lit_gamma.cli.sweep.planned import content
from lit_gamma.comparison.sweep_table import has_ended, row, write_table

SWEEP = ["sweep", *TINY, "--trainer.max_steps=20", "--out=runs/s"]
GRID = "--grid=model.gamma=0.3,0.8"


@pytest.fixture(autouse=True)
def as_a_user_runs_it(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def table(folder: str = "runs/s") -> pd.DataFrame:
    found = pa.ipc.open_stream(Path(folder, "sweep.arrow").read_bytes()).read_pandas()
    in_text = pd.read_csv(Path(folder, "sweep.csv"))
    assert list(in_text) == list(found)
    assert list(in_text["run"]) == list(found["run"])
    return found


def test_a_grid_is_read_as_it_is_written():
    grid = axes(["a.window=[0.25,0.5],null", "b={x: 1, y: 2}", "c='1,2',3"])
    assert grid == {"a.window": ["[0.25,0.5]", "null"], "b": ["{x: 1, y: 2}"], "c": ["'1,2'", "3"]}
    first, *_, last = cells(grid)
    assert first == {"a.window": "[0.25,0.5]", "b": "{x: 1, y: 2}", "c": "'1,2'"}
    assert last == {"a.window": "null", "b": "{x: 1, y: 2}", "c": "3"}
    assert name_of({"model.gamma": "0.3", "model.optimizer.lr": "1e-4"}) == "gamma0.3-lr1e-4"
    assert name_of({"data.seed": "1", "x.seed": "a/b"}) == "data.seed1-x.seeda_b"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "grid is empty"),
        (["--grid=model.gamma="], "--grid model.gamma=: give a key .* and values"),
        (["--grid=model.gamma=0.3,,0.8"], "give a key .* and values"),
        (["--grid=model.gamma"], "give a key .* and values"),
        ([GRID, "--grid=model.gamma=1"], "model.gamma comes twice"),
        (["--grid=seed_everything=1,2"], "--seeds"),
        ([GRID, "--seeds=0"], "--seeds must be at least 1, got 0"),
        ([GRID, "--jobs=-1"], "--jobs must be at least 1, got -1"),
        ([GRID, "--jobs=two"], "--jobs.*'two'"),
        ([GRID, "--slurm", "partition"], "--slurm partition: give KEY=VALUE"),
        (["--grid=model.gama=0.3"], "--grid model.gama: .* no such key; did you mean gamma?"),
        (
            ["--grid=model.optimizer.lr=1e-3,fast"],
            "lr=fast: .*lr: expected float, got fast",
        ),
        (["--grid=model.optimizer.lr=1e-3,-1"], "optimizer.lr must be positive, got -1"),
        (["--grid=model.gamma=0.3,0.30"], "gamma0.30-seed1 and gamma0.3-seed1 are one and the"),
        ([GRID, "--out=configs"], "configs holds no sweep, but something else"),
    ],
)
def test_bad_input_gives_one_message_before_anything_is_started(
    workspace, command_line, arguments, message
):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as exit_:
        command_line(*SWEEP, *arguments)
    assert "\n" not in str(exit_.value.code)
    assert not Path("runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("written", "axis"),
    [
        ({}, {"model.gamma": ["0.3", "0.8"]}),
        ({"model": {"optimizer": {"warmup_steps": "${seed_everything}"}}}, {}),
        ({"model": {"optimizer": {"weight_decay": "${seed_everything}"}}}, {}),  # 40.0
        ({"trainer": {"profiler": "seed ${seed_everything}"}}, {}),
        ({}, {"data.seed": ["40"]}),
        ({}, {"model.optimizer.warmup_steps": ["${fit.seed_everything}", "43"]}),
    ],
)
def test_each_run_is_planned_as_its_arguments_read(workspace, written, axis):
    Path("c.yaml").write_text(json.dumps({"extends": "configs/anchor.yaml", **written}))
    shared = ["--config=c.yaml", *TINY[1:], "--seed_everything=40"]
    fits = read_command(FitConfigs, ["fit", *shared])
    runs = plan(fits, shared, axis, n_seeds=3, out=Path("runs/s"))
    assert sorted({run.seed for run in runs}) == [40, 41, 42]
    for run in runs:
        read = fits.read(run.arguments)
        assert run.content == content(read)
        assert read["seed_everything"] == run.seed
        assert read["trainer"]["logger"]["init_args"]["version"] == run.name


@pytest.mark.slow
def test_a_sweep_is_a_table_of_ordinary_runs_and_repeats_none(workspace, command_line, capfd):
    command_line(*SWEEP, GRID, "--jobs=2")
    found = table().set_index("run")
    assert list(found.index) == ["gamma0.3-seed1", "gamma0.8-seed1"]
    assert list(found["model.gamma"]) == [0.3, 0.8]
    for name, of_run in found.iterrows():
        summary = json.loads(Path("runs/s", name, "summary.json").read_text())
        assert of_run["status"] == summary["status"] == "finished"
        assert of_run["steps"] == 20
        assert of_run["val/unseen/loss"] == summary["metrics"]["val/unseen/loss"]
        rank = summary["lowest_effective_rank"]["query"]
        assert of_run["lowest_effective_rank/query/step"] == rank["step"]
    assert "2 of 2: gamma0." in capfd.readouterr().err

    config = "--config=runs/s/gamma0.8-seed1/config.yaml"
    command_line("fit", config, "--trainer.logger.version=again")
    alone = json.loads(Path("runs/s/again/summary.json").read_text())
    assert alone["metrics"]["val/seen/loss"] == found.loc["gamma0.8-seed1", "val/seen/loss"]

    shutil.rmtree("runs/s/again")
    Path("runs/s/gamma0.3-seed1").rename("runs/s/renamed")
    command_line(*SWEEP, "--grid=model.gamma=0.80", "--grid=model.optimizer.lr=0.001")
    assert list(table()["run"]) == ["gamma0.8-seed1"]
    command_line(*SWEEP, GRID)
    again = table().set_index("run")
    assert list(again.index) == ["renamed", "gamma0.8-seed1"]
    pd.testing.assert_frame_equal(again.reset_index(drop=True), found.reset_index(drop=True))
    with pytest.raises(SystemExit, match=r"another config, with trainer\.max_steps 20, not 30"):
        command_line(*SWEEP, GRID, "--trainer.max_steps=30")

    command_line("compare", "runs/s", "--out=page.html")
    page = Path("page.html").read_text()
    assert "γ = 0.3" in page
    assert "γ = 0.8" in page
    assert "2 of 2 runs have ended" in page
    assert "none: flat within the seeds&#39; noise" in page
    cells = pd.read_csv("page_cells.csv").set_index(["measure", "model.gamma"])["value"]
    assert cells["val/unseen/loss", 0.8] == again.loc["gamma0.8-seed1", "val/unseen/loss"]

    for damaged in ("gamma0.8-seed1/summary.json", "sweep.yaml"):
        Path("runs/s", damaged).write_text("{")
        with pytest.raises(SystemExit, match=f"^error: runs/s/{damaged} is damaged; "):
            command_line(*SWEEP, GRID)


def forked(command_line, *arguments: str) -> multiprocessing.Process:
    """The command in a process of its own, without the seconds that its imports take."""

    def run() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background ignores it.
        command_line(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the runs of a killed sweep go on")
def test_a_sweep_that_was_killed_goes_on_to_the_same_row(workspace, command_line):
    base = Path("configs/base.yaml")
    base.write_text(base.read_text().replace("train_steps: 500", "train_steps: 20"))
    flags = ["--trainer.max_steps=200"]
    command_line("fit", *TINY, *flags, "--model.gamma=0.3", "--trainer.logger.version=alone")
    expected = json.loads(Path("runs/anchor/alone/summary.json").read_text())

    asked = [*SWEEP, *flags, "--grid=model.gamma=0.3"]
    process = forked(command_line, *asked)
    run = Path("runs/s/gamma0.3-seed1")
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    command_line(*asked)
    assert len(list(run.glob("config-step*.yaml"))) == 1
    (of_run,) = table().to_dict("records")
    assert of_run["status"] == "finished"
    for name, value in expected["metrics"].items():
        assert of_run[name] == value
    for extreme in ("strongest_condensation", "lowest_effective_rank"):
        for role, values in expected[extreme].items():
            for name, value in values.items():
                assert of_run[f"{extreme}/{role}/{name}"] == value


def stand_in(code: str):
    """In place of a fit, a process that runs ``code`` with the same output and inheritance."""
    real = subprocess.Popen

    def popen(command, **options):
        return real([sys.executable, "-c", code], **options)

    return popen


@pytest.mark.slow
def test_a_run_that_breaks_is_tried_once_more_and_reported(
    workspace, command_line, monkeypatch, capsys
):
    code = "import sys; sys.exit('error: no such luck')"
    monkeypatch.setattr("lit_gamma.cli.sweep.process.subprocess.Popen", stand_in(code))
    with pytest.raises(SystemExit, match=r"1 of 1 runs failed: gamma0\.3-seed1"):
        command_line(*SWEEP, "--grid=model.gamma=0.3")
    said = capsys.readouterr().err
    assert said.count("no such luck") == 2
    assert "it is tried once more" in said
    (of_run,) = table().to_dict("records")
    assert of_run["status"] == "failed: no such luck"
    assert Path("runs/s/logs/gamma0.3-seed1.txt").read_text().count("no such luck") == 2


@pytest.mark.slow
def test_ctrl_c_ends_the_runs_and_says_how_to_go_on(workspace, command_line, monkeypatch, capfd):
    code = (
        "import signal, sys, time\n"
        "assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('checkpoint'), sys.exit(143)))\n"
        "print('trains', flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr("lit_gamma.cli.sweep.process.subprocess.Popen", stand_in(code))
    process = forked(command_line, *SWEEP, GRID)
    log = Path("runs/s/logs/gamma0.3-seed1.txt")
    deadline = time.monotonic() + 60
    while not (log.is_file() and "trains" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGINT
    assert "checkpoint" in log.read_text()
    assert "go on with: python -m lit_gamma sweep" in capfd.readouterr().err
    assert list(table()["status"]) == ["missing", "missing"]


def test_what_is_not_there_is_missing_and_never_zero(tmp_path):
    said = {
        "status": "diverged at step 7",
        "steps": 20,
        "seconds": 1.5,
        "metrics": {"val/x": "nan"},
    }
    rows = [
        row("a", {"g": 0.3}, 1, None, False),
        row("b", {"g": None}, 1, {}, False),
        row("c", {"g": 0.5}, 1, {"status": "RuntimeError: oh"}, False),
        row("d", {"g": 0.5}, 2, said, True),
    ]
    assert not has_ended(said, 30)
    assert has_ended(said, 20)
    write_table(tmp_path, rows)
    found = pa.ipc.open_stream((tmp_path / "sweep.arrow").read_bytes()).read_all()
    assert found["status"].to_pylist() == [
        "missing",
        "unfinished",
        "failed: RuntimeError: oh",
        "diverged at step 7",
    ]
    assert found["val/x"].null_count == found["steps"].null_count == 3
    assert found["val/x"].to_pylist()[3] != found["val/x"].to_pylist()[3]
    assert (tmp_path / "sweep.csv").read_text().splitlines()[1] == '"a",0.3,1,"missing",,,'


def test_jobs_share_the_threads_and_have_a_gpu_each(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pool, "n_cores", lambda: 8)
    monkeypatch.setattr(pool.torch.cuda, "device_count", lambda: 2)
    assert pool.environment(0, 1) == dict(os.environ)
    several = [pool.environment(place, 3) for place in range(3)]
    assert [x["OMP_NUM_THREADS"] for x in several] == ["2"] * 3
    assert [x["CUDA_VISIBLE_DEVICES"] for x in several] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    second = pool.environment(1, 2)
    assert (second["CUDA_VISIBLE_DEVICES"], second["OMP_NUM_THREADS"]) == ("7", "3")
    monkeypatch.setattr(pool.torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert "CUDA_VISIBLE_DEVICES" not in pool.environment(1, 2)


def test_a_run_s_progress_is_read_off_its_bar(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 1000 + "\nstep 3/12 ██ 9/s\r\rstep 6/12 ████ 9/s, 00:01 left".encode())
    assert share_done(last_line(log), 0.0) == 0.5
    assert share_done("warning: step 3/12", 0.25) == 0.25  # The bar does not go back.


@pytest.mark.slow
def test_on_a_cluster_a_sweep_is_one_array_of_submitit(workspace, command_line, capfd):
    pytest.importorskip("submitit")
    with pytest.raises(SystemExit, match=r"error: --slurm: .*srun"):
        command_line(*SWEEP, "--grid=model.gamma=0.3", "--slurm")
    asked = [*SWEEP, "--grid=model.gamma=0.3", "--slurm", "cluster=local", "timeout_min=5"]
    command_line(*asked)
    assert list(table()["status"]) == ["finished"]
    assert re.search(r"1 runs are queued as job \d+", capfd.readouterr().err)
