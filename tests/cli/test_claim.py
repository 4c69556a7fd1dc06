"""A claim of the literature as one command: its runs, its verdict, and what refuses it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.runs import ROOT

from lit_gamma.cli.claim_runs import _planned
from lit_gamma.comparison.claim_cells import _last
from lit_gamma.comparison.claim_file import read_claim
from lit_gamma.comparison.claim_verdict import contrasts

SMOKE = ["claim", "C4", "--preset=smoke", "--jobs=2"]
HERE = Path("runs/claims/C4/smoke")


@pytest.mark.slow
def test_a_claim_makes_what_is_missing_and_gives_its_verdict(
    workspace, command_line, monkeypatch, capfd
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = ["trainer.max_steps=8", "trainer.val_check_interval=4", "data.n_val=100"]
    by_hand = ["--config=configs/anchor.yaml", "--model.optimizer.warmup_steps=2"]
    grid = ["--grid=model.gamma=0.5,0.8", "--grid=model.optimizer.lr=1.0e-3"]
    flags = [f"--{option}" for option in options]
    command_line("sweep", *by_hand, *flags, *grid, "--jobs=2", f"--out={HERE / 'anchor'}")
    made = sorted(path.name for path in (HERE / "anchor").glob("gamma*"))
    capfd.readouterr()
    for path in [*(HERE / "anchor").glob("*/config.yaml"), HERE / "anchor" / "sweep.yaml"]:
        text, found = re.subn(r"\n *per_head: false", "", path.read_text())
        assert found  # As an earlier lit-gamma saved it, which had no such option.
        path.write_text(text)

    command_line(*SMOKE)
    said = capfd.readouterr()
    assert "2 runs, 2 of them finished before" in said.err  # A sweep made by hand is the claim's.
    assert "2 runs, 0 of them finished before" in said.err
    assert sorted(path.name for path in (HERE / "anchor").glob("gamma*")) == made
    assert said.out.count("undecided") == 4
    assert "too few runs to tell a curve from noise" in said.out
    verdict = json.loads((HERE / "claim.json").read_text())
    assert verdict["verdict"] == "undecided"
    assert verdict["absent"] == ""
    assert {name: of["ended"] for name, of in verdict["sweeps"].items()} == {
        "anchor": 2,
        "anchor_two_held_out": 2,
    }
    page = (HERE / "claim.html").read_text()
    assert page.count("<svg viewBox") >= 4
    assert not re.search(r"https?:|url\(|\bsrc=", page)
    for run in (HERE / "anchor").glob("gamma0.5*"):
        (run / "summary.json").unlink()
    command_line(*SMOKE[:-1], "--jobs=0")
    assert "incomplete: of 4 runs 1 unfinished" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C44"], "unknown claim 'C44'; did you mean C4.*known: C1, C2"),
        (["C4", "--preset=cup"], "claim C4 has no preset 'cup'; did you mean cpu?"),
        (["C4", "--jobs=-1"], "--jobs must be at least 0, got -1"),
        (["C4", "--prest=cpu"], "claim has no option --prest=cpu; did you mean --preset?"),
        (["C3", "--preset=smoke"], "these runs need a file: --text FILE, plain text"),
        (["C4", "--preset=smoke", "--jobs=0"], "no run of claim C4, preset smoke, has finished"),
        (["odd", "--preset=smoke"], "part 'x' of kind better: missing a required argument"),
        (["off", "--preset=smoke"], "runs/claims/off/smoke/s has no model.gamma 0.9"),
    ],
)
def test_bad_input_gives_one_message_before_anything_is_started(
    workspace, command_line, arguments, message
):
    sweep = "{s: {config: anchor.yaml, grid: {model.gamma: [0.5, 0.8]}}}"
    head = f"claim: x\npresets: {{smoke: {{minutes: 1, seeds: 1, sweeps: {sweep}}}}}\nparts:\n"
    part = "- {says: x, kind: better, sweep: s, measure: val/seen/loss"
    Path("configs/claims/odd.yaml").write_text(f"{head}{part}}}\n")
    setting = "where: {model.gamma: 0.9}, than: {model.gamma: 0.5}"
    Path("configs/claims/off.yaml").write_text(f"{head}{part}, {setting}}}\n")
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as exit_:
        command_line("claim", *arguments)
    assert "\n" not in str(exit_.value.code)
    assert not Path("runs").exists()


ON_A_CPU = [
    *("--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"),
    *("--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1", "--data.batch_size=2"),
    *("--trainer.val_check_interval=1", "--trainer.limit_val_batches=1", "--model.compile=false"),
    *("--model.transformer.d_model=24", "--model.transformer.n_layers=1"),
    "--model.optimizer.warmup_steps=1",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4", "C7", "D1"])
def test_the_runs_of_a_card_can_be_made_small(workspace, command_line, name):
    lines = (f"Is {i} odd? Answer: {bool(i % 2)}" for i in range(8_000))
    Path("FILE.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    found = read_claim(Path(f"configs/claims/{name}.yaml"))
    label, sweep = list(found.presets["gpu"].items())[-1]
    one = replace(sweep, seeds=1, grid={key: values[:1] for key, values in sweep.grid.items()})
    planned = _planned(found, one, dict.fromkeys(found.needs, "FILE.jsonl"), Path("runs/x"))
    (run,) = planned.folder.runs
    of_text = ["--data.context_length=32", "--data.tokenizer=bytes"] if found.needs else []
    command_line("fit", *run.arguments, *ON_A_CPU, *of_text)
    made = Path("runs/x", run.name)
    metrics = json.loads((made / "summary.json").read_text())["metrics"]
    asked = (of for part in found.parts for of in contrasts(part) if "measure" in of)
    measures = {of["measure"] for of in asked if label in (of["sweep"], of.get("than_sweep"))}
    assert measures
    for measure in measures:
        assert measure in metrics or math.isfinite(_last(made, *measure.split("/")))


def test_without_a_name_the_claims_are_listed(workspace, command_line, capsys):
    command_line("claim")
    said = capsys.readouterr().out
    for name in ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "D1"):
        assert re.search(rf"  {name}  [A-Z].*\. \(smoke \d+ min, cpu \d+ min, gpu \d+ min\)", said)
