"""A misspelt key or class names the one that was meant, wherever it stands."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.runs import TINY

CONDENSATION = "class_path: lit_gamma.callbacks.Condensation"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "meant"),
    {
        "modl: {gamma: 1}": "model",
        "extnds: base.yaml": "extends",
        "gamma: 1": "model.gamma",
        "model: {gama: 1}": "gamma",
        "model: {transformer: {d_mdel: 3}}": "d_model",
        "model: {d_model: 3}": "model.transformer.d_model",
        "model: {optimizer: {weight_decy: 1}}": "weight_decay",
        "data: {class_pth: Text}": "class_path",
        "data: {class_path: lit_gamma.data.AnchorComposicion}": "AnchorComposition",
        "data: {class_path: TextDat}": "Text",
        "data: {init_args: {n_trin: 3}}": "n_train",
        "trainer: {maxsteps: 3}": "max_steps",
        "trainer: {logger: {init_args: {save_dr: x}}}": "save_dir",
        "trainer: {logger: {class_path: TensorBordLogger}}": "TensorBoardLogger",
        "trainer: {callbacks: [{class_path: lit_gamma.callbacks.Condensatoin}]}": "Condensation",
        "trainer: {callbacks: [{class_path: lit_gama.callbacks.Condensation}]}": "Condensation",
        f"trainer: {{callbacks: [{{{CONDENSATION}, int_args: {{}}}}]}}": "init_args",
        f"trainer: {{callbacks+: [{{{CONDENSATION}, init_args: {{schedle: 1}}}}]}}": "schedule",
        f"trainer: {{callbacks: [{{{CONDENSATION}, init_args: {{schedule: {{evry: 1}}}}}}]}}": (
            "every"
        ),
    }.items(),
)
def test_a_misspelt_name_in_a_config_names_its_neighbour(workspace, command_line, config, meant):
    Path("x.yaml").write_text(config)
    with pytest.raises(SystemExit, match=rf"^error: config file x\.yaml: .*did you mean {meant}.$"):
        command_line("fit", *TINY, "--config=x.yaml")


@pytest.mark.parametrize(
    ("flag", "meant"),
    {
        "--model.gama=1": "--model.gamma",
        "--model.transformer.d_mdel=1": "--model.transformer.d_model",
        "--model.optimizer.lrr=1": "--model.optimizer.lr",
        "--trainer.maxsteps=1": "--trainer.max_steps",
        "--data.n_trin=3": "n_train",
        "--data=TextDat": "Text",
        "--trainer.callbacks+=Kurtosi": "Kurtosis",
        "--trainer.callbacks+=lit_gamma.callbacks.Condensatoin": "Condensation",
        "--trainer.logger.save_dr=x": "save_dir",
        "--trainer.logger=TensorBordLogger": "TensorBoardLogger",
    }.items(),
)
def test_a_misspelt_argument_names_its_neighbour(workspace, command_line, flag, meant):
    with pytest.raises(SystemExit, match=rf"^error: .*did you mean {meant}.$"):
        command_line("fit", *TINY, flag)


def test_what_is_like_nothing_gets_no_guess(workspace, command_line):
    Path("x.yaml").write_text("model: {zzz: 1}")
    with pytest.raises(SystemExit, match=r"unknown key 'model\.zzz'$"):
        command_line("fit", *TINY, "--config=x.yaml")


def test_a_callback_whose_module_is_not_at_hand_says_where_it_was_looked_for(
    workspace, command_line
):
    Path("x.yaml").write_text("trainer: {callbacks: [{class_path: elsewhere.mine.Mine}]}")
    where = r"trainer\.callbacks: elsewhere\.mine\.Mine: no module elsewhere in this folder or on"
    with pytest.raises(SystemExit, match=rf"^error: config file x\.yaml: {where} PYTHONPATH$"):
        command_line("fit", *TINY, "--config=x.yaml")
