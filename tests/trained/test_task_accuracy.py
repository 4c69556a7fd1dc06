"""lm-eval's tasks along a training: what the command says of each step, unseen by training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning
import pandas
import pytest
import torch
from helpers.runs import ROOT, Snapshots, fit
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.task_accuracy import TaskAccuracy
from lit_gamma import InputError, LanguageModel, TransformerConfig, trained, trajectory
from lit_gamma.callbacks import Schedule
from lit_gamma.data import Text

pytest.importorskip("lm_eval")

EVERY = Schedule(every=1)


def fit_text(root, *callbacks, batch_size=4, **options):
    root.mkdir(exist_ok=True)
    file = root / "text.txt"
    file.write_text("".join(f"{n} and one is {n + 1}, so " for n in range(400)))
    lightning.seed_everything(0)
    data = Text(str(file), context_length=24, batch_size=batch_size, cache_dir=str(root / "cache"))
    module = LanguageModel(TransformerConfig(data.vocab_size, 24, 1, 2, 16), 0.5)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=3, callbacks=list(callbacks), enable_checkpointing=False,
        logger=TensorBoardLogger(root, name="", default_hp_metric=False), limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module


def sums_in(folder: Path) -> str:
    """Questions in a file."""
    sums = [
        {"prompt": f"{n} and one is", "answer": f" {n + 1}", "wrong": [f" {n + 2}", " x"]}
        for n in range(30)
    ]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, sums)))
    return str(folder / "sums.jsonl")


def test_every_step_has_what_evaluate_gives_and_training_does_not_notice(tmp_path):
    file = sums_in(tmp_path)
    kept = Snapshots()
    asks = TaskAccuracy(["questions"], file, limit=20, schedule=EVERY)
    trainer, module = fit_text(tmp_path / "with", asks, kept)
    state = [*module.state_dict().values(), torch.rand(3)]
    _, other = fit_text(tmp_path / "without")
    assert all(map(torch.equal, state, [*other.state_dict().values(), torch.rand(3)]))
    table = trajectory.load(trainer.log_dir)["task_accuracy"].set_index("step")
    assert list(table.index) == [0, 1, 2, 3]
    for step in table.index:
        module.load_state_dict(kept.weights[step])
        model = trained.Trained(module.eval().transformer, {}, trainer.datamodule.tokenizer)
        found = trained.evaluate(model, ["questions"], file, 20)["results"]["questions"]
        for name in ("acc", "acc_norm"):
            assert table.loc[step, f"questions_{name}"] == pytest.approx(found[f"{name},none"])
    assert trajectory.reading.outcomes(trainer.log_dir) == ["task_accuracy"]
    with pytest.raises(InputError, match="TaskAccuracy asks a LanguageModel that trains on text"):
        fit(tmp_path, TaskAccuracy(["questions"], file), max_steps=1)


@pytest.mark.slow
def test_each_of_two_processes_finds_what_one_does(tmp_path):
    file = sums_in(tmp_path)
    trainer, _ = fit_text(tmp_path / "one", TaskAccuracy(["questions"], file, schedule=EVERY))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*command, __file__, str(tmp_path / "two"), file],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=True,
        timeout=240,
    )
    alone = trajectory.load(trainer.log_dir)["task_accuracy"]
    pandas.testing.assert_frame_equal(
        trajectory.load(tmp_path / "two/version_0")["task_accuracy"], alone, rtol=1e-6
    )
    assert 0 < alone["questions_acc"].mean() < 1
    for rank in range(2):
        found = json.loads((tmp_path / f"two/rank{rank}.json").read_text())
        assert found == pytest.approx({name: alone[name].iloc[-1] for name in found}, rel=1e-6)
        assert "questions_acc" in found


if __name__ == "__main__":
    asks = TaskAccuracy(["questions"], sys.argv[2], schedule=EVERY)
    trainer, _ = fit_text(Path(sys.argv[1]), asks, batch_size=2, devices=2, strategy="ddp")
    last = {name: value.item() for name, value in asks.observe(None, trainer.model).items()}
    Path(sys.argv[1], f"rank{trainer.global_rank}.json").write_text(json.dumps(last))
