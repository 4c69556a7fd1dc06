"""A workspace laid down by ``init``, and configs that build on those of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.runs import ROOT


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for part in ("configs", "callbacks") for path in (folder / part).rglob("*.*"))
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in files if path.suffix != ".pyc"
    }


@pytest.mark.parametrize("before", [None, ".venv"])
def test_init_lays_down_every_config_and_callback(empty, command_line, capsys, before):
    if before:
        Path("mine", before).mkdir(parents=True)
    command_line("init", "mine")
    assert contents(empty / "mine") == contents(ROOT)
    assert re.search(
        r"cd mine\n +lit-gamma fit --config configs/anchor\.yaml", capsys.readouterr()[0]
    )


@pytest.mark.parametrize("held", ["mine/notes.txt", "mine"])
def test_init_overwrites_nothing(empty, command_line, held):
    Path(held).parent.mkdir(exist_ok=True)
    Path(held).write_text("mine")
    with pytest.raises(SystemExit, match=r"^error: mine (holds notes\.txt|is a file)[^\n]+$"):
        command_line("init", "mine")
    assert [path for path in empty.rglob("*") if path.is_file()] == [Path(held).absolute()]


def merged(command_line, capsys, *arguments: str) -> dict:
    with pytest.raises(SystemExit, match="0"):
        command_line("fit", *arguments, "--print_config")
    return yaml.safe_load(capsys.readouterr().out)


def test_extends_takes_the_file_beside_it_or_else_the_shipped_one(empty, command_line, capsys):
    Path("x.yaml").write_text("extends: text.yaml\ndata: {init_args: {batch_size: 7}}")
    config = merged(command_line, capsys, "--config=x.yaml")
    assert config["data"]["class_path"] == "lit_gamma.data.Text"
    assert config["data"]["init_args"]["batch_size"] == 7
    assert config["trainer"]["logger"]["init_args"]["save_dir"] == "runs"  # of base.yaml
    Path("text.yaml").write_text("model: {gamma: 0.25}")
    config = merged(command_line, capsys, "--data=Text", "--config=x.yaml")
    assert config["model"]["gamma"] == 0.25
    assert config["trainer"]["callbacks"] is None


@pytest.mark.parametrize(
    ("named", "message"),
    {
        "--config=anchor.yaml": r"anchor\.yaml does not exist, but .*`lit-gamma init FOLDER`",
        "--config=configs/anchor.yaml": r"configs/anchor\.yaml does not.*`lit-gamma init FOLDER`",
        "--config=y.yml": r"y\.yml does not exist; did you mean y\.yaml\?",
        "--config=x.yaml": (
            r"anchr\.yaml does not exist, extended by .*x\.yaml; nor does lit-gamma come with one "
            r".*, base\.yaml, .*; did you mean anchor\.yaml\?"
        ),
    }.items(),
)
def test_a_config_that_is_nowhere_says_where_it_was_looked_for(empty, command_line, named, message):
    Path("x.yaml").write_text("extends: anchr.yaml")
    Path("y.yaml").touch()
    with pytest.raises(SystemExit, match=f"^error: config file {message}"):
        command_line("fit", named)
