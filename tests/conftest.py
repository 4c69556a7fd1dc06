from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import lightning
import pytest
import torch
from hypothesis import settings
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig, cli
from lit_gamma.data import AnchorComposition

ROOT = Path(__file__).parents[1]

settings.register_profile("untimed", deadline=None)  # No test depends on how fast the machine is.
settings.load_profile("untimed")

TINY = [
    "--config=configs/anchor.yaml",
    "--model.transformer.d_model=16",
    "--data.n_train=512",
    "--data.n_val=64",
    "--data.batch_size=16",
    "--trainer.val_check_interval=10",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]
"""The default experiment, small: 32 batches an epoch."""


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
    taking_turns = r"(callbacks\.(?:Condensation|EffectiveRank)\n[^-]*?)overhead: .*"
    paced = r"\1overhead: null\n        matrices_per_step: 0.5"
    text, found = re.subn(taking_turns, paced, base.read_text())
    assert found == 2
    base.write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Snapshots(lightning.Callback):
    """Keeps the weights of every step."""

    def __init__(self):
        self.weights = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = pl_module.state_dict()
        self.weights[trainer.global_step] = {k: v.clone() for k, v in state.items()}


def tiny_module(gamma: float = 0.8, **transformer) -> LanguageModel:
    shape = {"vocab_size": 110, "context_length": 9, "d_model": 16, **transformer}
    return LanguageModel(
        TransformerConfig(**shape), gamma, optimizer=OptimizerConfig(lr=0.01, warmup_steps=2)
    )


def fit(
    root: Path,
    *callbacks,
    seed: int = 0,
    version=None,
    ckpt_path=None,
    module=None,
    data=None,
    **trainer,
):
    """Fits the tiny model on the anchor task, or another, and returns the trainer."""
    lightning.seed_everything(seed)
    made = lightning.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(root, name="", version=version, default_hp_metric=False),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        **{"limit_val_batches": 0, "enable_checkpointing": False, **trainer},
    )
    data = data or AnchorComposition(n_train=160, n_val=32, batch_size=16)
    made.fit(module or tiny_module(), data, ckpt_path=ckpt_path)
    return made
