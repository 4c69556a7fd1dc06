"""What a fit says at once is what the parser makes of its configs seconds later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning
import pytest
from helpers.runs import ROOT

import lit_gamma.callbacks
from lit_gamma.callbacks import TrajectoryCallback
from lit_gamma.cli.first_line import RECORDS_NOTHING, first_line

ANCHOR = "--config=configs/anchor.yaml"


def test_the_default_experiment_is_told(workspace):
    assert first_line(["--config", "configs/anchor.yaml", "--model.gamma", "0.5"]) == (
        "anchor: 2 layers, d_model 128; γ 0.5 (std 0.0884 at d_in 128); AnchorComposition; "
        "1500 steps; recording condensation, effective rank, weight norms, token loss, "
        "token loss profile, overhead, anchor reasoning"
    )
    usual = first_line([ANCHOR, "--model.gamma=null", "--model.init_std=0.02"])
    assert "; std 0.02 (γ 0.806 at d_in 128); " in usual


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        [ANCHOR],
        [ANCHOR, "--model.gamma=.3", "--model.transformer.d_model=64", "--trainer.max_steps=9"],
        [ANCHOR, "--model.gamma=null", "--model.init_std=.02"],
        [ANCHOR, "--config=x.yaml"],
        [ANCHOR, "--trainer.callbacks+=Kurtosis", "--trainer.callbacks.init_args.schedule.every=2"],
        [ANCHOR, "--trainer.callbacks=null", "--trainer.callbacks+=ProbeLoss"],
        [ANCHOR, "--data=Text", "--data.data_files=x.yaml"],
        [ANCHOR, "--trainer.max_steps", "-1", "--trainer.max_epochs", "3"],
        ["-c", "configs/text.yaml", "--data.batch_size", "3", "--trainer.logger=false"],
    ],
)
def test_it_is_what_the_parser_understands(workspace, command_line, capsys, arguments):
    Path("x.yaml").write_text(
        "model: {gamma: '${model.transformer.n_layers}', transformer: {n_layers: 3}}\n"
        "trainer: {callbacks+: [{class_path: lit_gamma.callbacks.AttentionSink}]}"
    )
    with pytest.raises(SystemExit, match="0"):
        command_line("fit", *arguments, "--print_config")
    Path("parsed.yaml").write_text(capsys.readouterr().out)
    assert first_line(arguments) == first_line(["--config=parsed.yaml"])


def test_the_package_s_callbacks_that_record_nothing_are_known():
    classes = [getattr(lit_gamma.callbacks, name) for name in lit_gamma.callbacks.__all__]
    silent = {
        each.__name__
        for each in classes
        if issubclass(each, lightning.Callback) and not issubclass(each, TrajectoryCallback)
    }
    assert silent | {"Overview"} == set(RECORDS_NOTHING)  # That draws what others record.


@pytest.mark.parametrize(
    "argument",
    [
        "--help",
        "--print_config",
        "--model=3",
        "--model.gamma=x",
        "--model.gamma=${model.gamma}",
        "--seed_everything=${no.such}",
        "--data=7",
        "--data=[1",
        "--trainer.callbacks=3",
    ],
)
def test_nothing_is_told_where_no_training_follows(workspace, argument):
    assert first_line([ANCHOR, argument]) is None


def test_a_process_beside_the_first_is_silent(workspace, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert first_line([ANCHOR]) is None


def test_it_needs_neither_torch_nor_lightning(workspace):
    code = (
        "import sys\n"
        "from lit_gamma.cli.first_line import first_line\n"
        f"assert first_line([{ANCHOR!r}])\n"
        "assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
