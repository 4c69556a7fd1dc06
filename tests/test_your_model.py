"""The code of docs/your_model.md, run as it stands."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lit_gamma import gamma_init_, metrics, trajectory
from lit_gamma.callbacks import GammaInit, Schedule

DOC = (ROOT / "docs/your_model.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)


def write(folder, name: str) -> str:
    (code,) = (code for code in CODE if code.startswith(f"# {name}\n"))
    (folder / name).write_text(code)
    return code


def test_the_yaml_means_what_it_says_in_anyone_s_command_line(folder):
    text = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[0]
    (folder / "config.yaml").write_text(text)
    cli = LightningCLI(BoringModel, run=False, args=["--config=config.yaml"])
    init, condensation = cli.trainer.callbacks[:2]
    assert (type(init), init.gamma) == (GammaInit, 1.0)
    assert condensation.schedule == Schedule(per_decade=20, dense_until=100)
    assert not condensation.schedule.due(105)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lightning_script_starts_from_the_rule_and_records(folder, capsys):
    pytest.importorskip("transformers")
    exec(write(folder, "train.py"), {"__name__": "__main__"})
    (run,) = (folder / "lightning_logs").iterdir()
    tables = trajectory.load(run)
    assert set(tables) == {"condensation", "effective_rank", "weight_norms", "token_loss"}
    start = tables["weight_norms"].query("step == 0")
    assert start["implied_gamma"].mean() == pytest.approx(1, abs=0.02)
    losses = tables["token_loss"]["mean"]
    assert losses[0] == pytest.approx(np.log(100), rel=0.01)
    queries = tables["condensation"].query("role == 'query'").groupby("step")
    means = queries["mean_squared_cosine_over_null"].mean()
    assert {0, 1, 2, 3, 6, 10, 18} <= set(means.index)
    assert str(means) in capsys.readouterr().out


def test_the_documented_probes_run_from_the_command_line(workspace, command_line):
    text = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)[1]
    (workspace / "probes.yaml").write_text(text)
    command_line("fit", *TINY, "--config=probes.yaml", "--trainer.max_steps=2")
    tables = trajectory.load("runs/anchor/version_0")
    assert list(tables["norm_saturation"]["module"].unique()) == [
        *(f"transformer.blocks.{i}.{part}_norm" for i in range(2) for part in ("attention", "mlp")),
        "transformer.norm",
    ]
    start = tables["attention_sink"].query("step == 0")
    assert len(start) == 2
    assert start["entropy_over_null"].between(0.99, 1.0001).all()


def test_the_doctor_s_script_finds_the_epsilon(folder, capsys):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    exec(write(folder, "examine.py"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed.count("warning: ") == 1
    assert "norms are saturated" in printed


def test_the_bare_loop_and_the_hugging_face_callback_record_the_ranks(folder, capsys):
    exec(write(folder, "loop.py"), {"__name__": "__main__"})
    assert "0.125" in capsys.readouterr().out  # 8^-1
    table = trajectory.load(folder / "run")["rank"]
    assert list(table["step"]) == [step for step in range(50) for _ in range(2)]
    assert list(table["matrix"]) == 50 * ["0", "2"]

    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    scope = {"__name__": "hf_trainer"}
    exec(write(folder, "hf_trainer.py"), scope)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32,
                                 num_hidden_layers=1, num_attention_heads=2)
    )  # fmt: skip
    gamma_init_(model, 0.8, generator=torch.Generator().manual_seed(0))
    start = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    ids = torch.randint(50, (64, 8))
    data = [{"input_ids": row, "labels": row} for row in ids]
    options = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
    arguments = transformers.TrainingArguments("out", max_steps=5, **options)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[scope["Ranks"]()]).train()
    table = trajectory.load(folder / "out")["rank"].query("role == 'query'")
    assert list(table["step"]) == list(range(6))
    expected = metrics.effective_rank(metrics.singular_values(start)).item()
    assert table["effective_rank"].iloc[0] == pytest.approx(expected)
