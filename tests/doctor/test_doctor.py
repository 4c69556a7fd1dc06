"""The doctor: what it finds in models that are ill in one way each."""

from __future__ import annotations

import math
from pathlib import Path

import lightning
import pytest
import torch
from helpers.runs import TINY, tiny_module
from torch import nn

from lit_gamma import InputError, diagnose, gamma_init_, gate_attention_

IDS = torch.randint(20, 100, (8, 9), generator=torch.Generator().manual_seed(0))
BATCH = {"input_ids": IDS, "labels": IDS.roll(-1, 1)}


def examined(module, batch=BATCH, **options):
    return diagnose(module, batch, module.init_audit, **options)


def test_a_healthy_module_gets_its_figures_and_no_finding():
    lightning.seed_everything(0)
    module = tiny_module(0.5)
    diagnosis = examined(module, weight_decay=0.1)
    assert diagnosis.findings == ()
    assert diagnosis.exit_code == 0
    logits = module(IDS).flatten(0, 1)
    loss = nn.functional.cross_entropy(logits, BATCH["labels"].flatten()).item()
    assert diagnosis.facts["first loss"] == f"{loss:.3f} nats, ln(110) = {math.log(110):.3f}"
    assert diagnosis.facts["attention"].startswith("2 layers, 2 heads, a gate")
    assert diagnosis.facts["weight decay"].startswith("0.1 at gamma 0.50")
    assert "nothing found" in str(diagnosis)
    usual = examined(tiny_module(None, init_std=0.02, d_model=128), weight_decay=0.1)
    assert usual.facts["weights"].startswith("16 matrices drawn with std 0.02, that is gamma 0.627")
    assert usual.facts["weight decay"] == "0.1 at gamma 0.81"


def findings(diagnosis) -> list[tuple[str, str, str]]:
    return [(finding.kind, finding.level, finding.what) for finding in diagnosis.findings]


def test_each_illness_is_named_with_its_figures():
    lightning.seed_everything(0)
    module = tiny_module(1.0, d_model=768, n_layers=1, norm_eps=1e-5)
    (found,) = findings(examined(module))
    assert found == (
        "saturated norms",
        "warning",
        "3 of 3 norms are saturated: in transformer.blocks.0.attention_norm epsilon is 86% of the "
        "denominator (input RMS 0.0013, output RMS 0.38, not 1)",
    )

    ((kind, level, what),) = findings(examined(tiny_module(0.8, gate="none")))
    assert (kind, level) == ("attention sink", "note")
    assert what.startswith("softmax attention without a gate at ga")
    ids = torch.randint(100, (2, 128))
    long = {"input_ids": ids, "labels": ids.roll(-1, 1)}
    ((_, level, _),) = findings(examined(tiny_module(0.8, gate="none", context_length=128), long))
    assert level == "warning"

    (found,) = findings(examined(tiny_module(1.0), weight_decay=0.1))
    assert found == ("weight decay", "note", "weight decay 0.1 is small for gamma 1.00")

    (found,) = findings(examined(tiny_module(0.5), weight_decay=0.6))
    assert found == ("weight decay", "note", "weight decay 0.6 is large for gamma 0.50")

    module = tiny_module(0.5)
    with torch.no_grad():
        module.transformer.lm_head.weight.mul_(20)
    weights, loss = findings(examined(module))
    assert (weights[0], loss[0]) == ("not as drawn", "first loss")
    assert weights[2].startswith("1 of 16 matrices are not as drawn by the rule: lm_head has std")
    assert loss[2].startswith("the first loss is ")

    module = tiny_module(0.1, tie_embeddings=True)  # logits of std 16^0.3, or 16^0.8 for the input
    ((*_, what),) = findings(examined(module))
    assert what.endswith("nats, expected 4.700 = ln(110)")
    masked = {"input_ids": IDS, "labels": torch.full_like(IDS, -100)}
    ((*_, what),) = findings(examined(tiny_module(0.5), masked))
    assert what.startswith("the first loss is nan nats")


def test_any_model_and_batch():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, rms_norm_eps=1e-2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.randint(100, (4, 96))
    batch = {"input_ids": ids, "labels": ids}
    gate_attention_(model)
    audit = gamma_init_(model, 0.9)
    ((*_, what),) = findings(diagnose(model, batch, audit))
    assert what.startswith("5 of 5 norms are saturated: in model.layers")
    plain = transformers.LlamaForCausalLM(config)
    plain.model.embed_tokens.weight.data.normal_()
    kind, _, own = findings(diagnose(plain, batch, weight_decay=0.0))[0]
    assert kind == "no single rule"
    assert own.startswith("no single rule has drawn the weights: gamma is -0.00 for embedding")
    with pytest.raises(InputError, match="ReLU has no weight matrix"):
        diagnose(nn.ReLU(), torch.zeros(2, 2))
    mlp = diagnose(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.ones(4, 8))
    assert mlp.facts["first loss"] == "the forward gives no loss"


@pytest.mark.slow
def test_the_command_line_tells_scripts_and_leaves_nothing(workspace, command_line, capsys):
    before = set(Path().rglob("*"))
    with pytest.raises(SystemExit) as well:
        command_line("doctor", *TINY)
    assert well.value.code == 0
    assert "ln(110) = 4.700" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ill:
        command_line("doctor", *TINY, "--model.transformer.norm_eps=0.01")
    assert ill.value.code == 2
    assert "warning: 5 of 5 norms are saturated" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .*data_files"):
        command_line("doctor", "--config=configs/text.yaml")
    assert {p for p in Path().rglob("*") if "__pycache__" not in str(p)} == before
