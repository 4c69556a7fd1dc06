"""The short help says of each option what the parser would."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import pytest
import yaml
from helpers.runs import ROOT
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gamma.cli.short_help import GROUPS, short_help
from lit_gamma.data import Text

OPTIONS = [option for options in GROUPS.values() for option in options]


def default_of(name: str, parsed: dict) -> object:
    """The value that an option has where nothing states one; an error if there is none."""
    section, _, key = name.rpartition(".")
    made = {"data": Text, "trainer.logger": TensorBoardLogger}
    if section in made:
        return inspect.signature(made[section]).parameters[key].default
    for part in name.rstrip("+").split("."):
        parsed = parsed[part]
    return parsed


def test_its_defaults_are_those_of_the_parser(tmp_path, monkeypatch, command_line, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        command_line("fit", "--print_config")
    parsed = yaml.safe_load(capsys.readouterr().out) | {"config": None}
    told = {option.name: option.default for option in OPTIONS}
    assert told == {name: default_of(name, parsed) for name in told}


def test_fit_help_fits_a_terminal_and_names_the_complete_list(command_line, capsys):
    command_line("fit", "--help")
    printed = capsys.readouterr().out
    assert printed == short_help() + "\n"
    assert max(map(len, printed.splitlines())) <= 80
    more = re.search(r"fit (--help all) ", printed)[1]
    with pytest.raises(SystemExit, match="0"):
        command_line("fit", *more.split())
    complete = capsys.readouterr().out
    assert "usage: python -m lit_gamma" in complete
    for option in OPTIONS:
        assert re.search(rf"  --{option.name.partition('+')[0]}\b", printed)
        if not option.name.startswith(("data.", "trainer.logger.")):
            assert f"--{option.name.rstrip('+')}" in complete


@pytest.mark.parametrize("arguments", [["fit", "--help"], ["claim"]])
def test_lists_import_nothing_heavy(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['lit_gamma', *{arguments}]\n"
        "from lit_gamma.cli import main\n"
        "main()\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_a_reader_that_has_gone_is_no_fault_of_the_program():
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_gamma", "claim"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_pipe_of_something_else_that_breaks_is_not_hidden():
    code = (
        "import sys\n"
        "from lit_gamma.cli import claim, main\n"
        "def breaks(_): raise BrokenPipeError(32, 'a pipe of a worker')\n"
        "claim.claim = breaks\n"
        "sys.argv = ['lit_gamma', 'claim']\n"
        "main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 1
    assert "a pipe of a worker" in process.stderr
