"""Runs to compare."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from helpers.runs import ROOT

SMALL = [
    "--config=configs/text.yaml",
    "--data.batch_size=8",
    "--model.transformer.d_model=16",
    "--model.transformer.n_layers=1",
    "--model.optimizer.warmup_steps=2",
    "--trainer.limit_val_batches=1",
    "--trainer.val_check_interval=5",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_steps=9",
]


@pytest.fixture(scope="package")
def runs(tmp_path_factory, command_line):
    """γ 0.5 with two seeds, γ 1.0, a shorter one, and one with another context length."""
    root = tmp_path_factory.mktemp("runs")
    for folder in ("configs", "callbacks"):
        shutil.copytree(ROOT / folder, root / folder)
    generator = np.random.default_rng(0)
    for name, words in {
        "plain": ["to", "be", "or\n"],
        "tags": ["<b>", "</script>", "\"&'"] * 2,
    }.items():
        (root / f"{name}.txt").write_text(" ".join(generator.choice(words, 1500)))
    sources = {name: {"data_files": str(root / f"{name}.txt")} for name in ("plain", "tags")}
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, flags in {
            "a": ["--model.gamma=0.5"],
            "a2": ["--model.gamma=0.5", "--seed_everything=2"],
            "b": ["--model.gamma=1.0"],
            "longer": ["--model.gamma=1.0", "--data.context_length=32", "--trainer.max_steps=1"],
        }.items():
            command_line("fit", *SMALL[:1], "--data.context_length=24", *SMALL[1:],
                         f"--data.sources={json.dumps(sources)}",
                         f"--trainer.logger.init_args.version={name}", *flags)  # fmt: skip
            made[name] = str(root / "runs" / "text" / name)
    return made
