"""lm-eval's tasks along a training: what the command says of each step, unseen by training."""

from __future__ import annotations

import json

import lightning
import pytest
import torch
from helpers.runs import Snapshots, fit
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.task_accuracy import TaskAccuracy
from lit_gamma import InputError, LanguageModel, TransformerConfig, trained, trajectory
from lit_gamma.callbacks import Schedule
from lit_gamma.data import Text

pytest.importorskip("lm_eval")


def fit_text(root, *callbacks):
    root.mkdir()
    file = root / "text.txt"
    file.write_text("".join(f"{n} and one is {n + 1}, so " for n in range(400)))
    lightning.seed_everything(0)
    data = Text(str(file), context_length=24, batch_size=4, cache_dir=str(root / "cache"))
    module = LanguageModel(TransformerConfig(data.vocab_size, 24, 1, 2, 16), 0.5)
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=3, callbacks=list(callbacks), enable_checkpointing=False,
        logger=TensorBoardLogger(root, name="", default_hp_metric=False), limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, data)
    return trainer, module


def test_every_step_has_what_evaluate_gives_and_training_does_not_notice(tmp_path):
    file = tmp_path / "sums.jsonl"
    sums = [
        {"prompt": f"{n} and one is", "answer": f" {n + 1}", "wrong": [f" {n + 2}", " x"]}
        for n in range(30)
    ]
    file.write_text("\n".join(map(json.dumps, sums)))
    kept, every = Snapshots(), Schedule(every=1)
    asks = TaskAccuracy(["questions"], str(file), limit=20, schedule=every)
    trainer, module = fit_text(tmp_path / "with", asks, kept)
    state = [*module.state_dict().values(), torch.rand(3)]
    _, other = fit_text(tmp_path / "without")
    assert all(map(torch.equal, state, [*other.state_dict().values(), torch.rand(3)]))
    table = trajectory.load(trainer.log_dir)["task_accuracy"].set_index("step")
    assert list(table.index) == [0, 1, 2, 3]
    for step in table.index:
        module.load_state_dict(kept.weights[step])
        model = trained.Trained(module.eval().transformer, {}, trainer.datamodule.tokenizer)
        found = trained.evaluate(model, ["questions"], str(file), 20)["results"]["questions"]
        for name in ("acc", "acc_norm"):
            assert table.loc[step, f"questions_{name}"] == pytest.approx(found[f"{name},none"])
    assert trajectory.reading.outcomes(trainer.log_dir) == ["task_accuracy"]
    with pytest.raises(InputError, match="TaskAccuracy asks a LanguageModel that trains on text"):
        fit(tmp_path, TaskAccuracy(["questions"], str(file)), max_steps=1)
