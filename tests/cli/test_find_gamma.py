"""Which γ, by short runs: what a user types, and sees."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from helpers.runs import ROOT, TINY

from lit_gamma.cli.find_gamma import bars, gammas_of
from lit_gamma.doctor.diagnosis import Diagnosis
from lit_gamma.doctor.finding import Finding, Kind

FIND = ["find-gamma", *TINY, "--steps=20", "--model.optimizer.warmup_steps=2", "--out=runs/f"]


def test_a_range_is_read_as_it_is_written():
    assert gammas_of("0.4,0.8") == ["0.4", "0.5", "0.6", "0.7", "0.8"]
    assert gammas_of("0.5,1,0.25") == ["0.5", "0.75", "1"]


def test_saturated_norms_and_weights_not_as_drawn_bar_a_gamma_whatever_their_words():
    findings = (Finding(kind, "warning", kind[::-1], "", "", "") for kind in get_args(Kind))
    assert bars(Diagnosis({}, tuple(findings))) == ["nward sa ton", "smron detarutas"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--range=0.8,0.4"], "--range 0.8,0.4: give LOW,HIGH"),
        (["--range=low,1"], "--range low,1: give LOW,HIGH"),
        (["--range=0.4,0.8,0.1,5"], "--range 0.4,0.8,0.1,5: give LOW,HIGH"),
        (["--seeds=0"], "--seeds must be at least 1, got 0"),
        (["--steps=-3"], "--steps must be at least 1, got -3"),
        (["--grid=model.optimizer.weight_decay=0,1"], "find-gamma varies γ and model.optimizer.lr"),
        (["--range=0.5,1,0.5", "--model.transformer.norm_eps=1"], "lets 0 of 2 γ pass"),
        (["--steps=2"], "--steps 2 ends within the warm-up of 2 steps"),
        (["--model.gama=1"], "gama"),
    ],
)
def test_bad_input_gives_one_message_before_anything_is_started(
    workspace, command_line, arguments, message
):
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}") as exit_:
        command_line(*FIND, *arguments)
    assert "\n" not in str(exit_.value.code)
    assert not Path("runs").exists()


@pytest.mark.slow
def test_gammas_are_examined_tried_and_shown(workspace, command_line, monkeypatch, capfd):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    eps = "--model.transformer.norm_eps=1e-3"  # Saturates the norms of γ 1.1: 16^-2.2 = 2e-3.
    command_line(*FIND, "--range=0.3,1.1,0.4", "--seeds=1", eps)
    said = capfd.readouterr()
    assert re.search(r"γ 1\.1 is not tried: .* norms are saturated", said.err)
    assert "nothing is recommended" in said.out
    assert sorted(p.parent.name for p in Path("runs/f").glob("*/summary.json")) == [
        "gamma0.3-seed1",
        "gamma0.7-seed1",
    ]
    summary = json.loads(Path("runs/f/gamma0.3-seed1/summary.json").read_text())
    assert list(summary["validations"]) == ["10", "20"]  # What the user says goes.
    assert summary["validations"]["20"] == summary["metrics"]
    page = Path("runs/f/find-gamma.html").read_text()
    assert "γ 1.1 is not tried" in page
    assert page.count("<figure>") == 2 + ("nats behind" in page)
    assert not re.search(r"https?:|url\(|\bsrc=", page)
