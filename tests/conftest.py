from __future__ import annotations

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.runs import ROOT
from hypothesis import settings

from lit_gamma import cli

os.environ.setdefault("OMP_NUM_THREADS", "1")  # Of the processes that tests start.
settings.register_profile("untimed", deadline=None)  # No test depends on how fast the machine is.
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Workers take the files by name: by number of tests, the few long ones would come last."""
    config.option.loadscopereorder = False


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """No test depends on what ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def command_line() -> Callable[..., None]:
    """Runs ``python -m lit_gamma ARGS`` in this process, in the current directory."""

    def run(*args: str) -> None:
        argv, sys.argv = sys.argv, ["lit_gamma", *args]
        try:
            cli.main()
        finally:
            sys.argv = argv
            torch.set_flush_denormal(False)  # the command line turns it on

    return run


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """A user's directory with this repository's ``configs/`` and ``callbacks/``.

    Matrices take turns at a fixed pace, not one found by timing, so that records repeat exactly.
    """
    for folder in ("configs", "callbacks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    base = tmp_path / "configs" / "base.yaml"
    taking_turns = r"(callbacks\.(?:Condensation|EffectiveRank)\n +init_args:\n)"
    paced = r"\1        matrices_per_step: 0.5\n"
    text, found = re.subn(taking_turns, paced, base.read_text())
    assert found == 2
    base.write_text(text)
    for config in (tmp_path / "configs").glob("*.yaml"):
        config.write_text(re.sub(r"(?m)^overhead: .*$", "overhead: null", config.read_text()))
    monkeypatch.chdir(tmp_path)
    return tmp_path
