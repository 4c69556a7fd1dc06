"""Gates added to Hugging Face attention."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.families import FAMILIES, batch_of, token_loss
from torch import nn

from lit_gamma import InputError, gamma_init_, gate_attention_, neurons

TASK = torch.Generator().manual_seed(0)
BATCH = batch_of("causal", TASK)
GATED = ("Llama", "GPT-2", "GPT-NeoX, Pythia", "Phi-3", "Mixtral", "BERT")


def llama() -> nn.Module:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    return FAMILIES["Llama"].build()


@pytest.mark.parametrize("granularity", ["elementwise", "headwise"])
def test_a_gate_multiplies_the_output_of_the_heads(granularity):
    model = llama()
    attention = model.model.layers[0].self_attn
    assert gate_attention_(model, granularity) == [f"model.layers.{i}.self_attn" for i in range(2)]
    gamma_init_(model, 0.5, generator=torch.Generator().manual_seed(0))
    seen = {}
    attention.register_forward_pre_hook(
        lambda m, args, kwargs: seen.update(x=kwargs["hidden_states"]), with_kwargs=True
    )
    attention.o_proj.register_forward_pre_hook(lambda m, args: seen.update(o=args[0]), prepend=True)
    attention.o_proj.register_forward_hook(lambda m, args, out: seen.update(out=out))
    model(BATCH["input_ids"])
    gate = torch.sigmoid(seen["x"] @ attention.gate.weight.T)
    if granularity == "headwise":
        gate = gate.repeat_interleave(4, -1)  # channels of a head
    torch.testing.assert_close(seen["out"], (seen["o"] * gate) @ attention.o_proj.weight.T)
    gates = [m for m in neurons(model) if m.role == "attention_gate"]
    assert [tuple(m.weight.shape) for m in gates] == 2 * [
        (16 if granularity == "elementwise" else 4, 16)
    ]


@pytest.mark.parametrize("name", GATED)
def test_gates_are_trained_and_an_open_gate_changes_nothing(name):
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    plain, task = FAMILIES[name].build().eval(), FAMILIES[name].task
    gated = copy.deepcopy(plain)
    layers = [gated.get_submodule(path) for path in gate_attention_(gated)]
    assert len(layers) == 2
    before = token_loss(plain, task, BATCH)
    halved = token_loss(gated, task, BATCH)
    assert not torch.allclose(before, halved, equal_nan=True)
    halved.nanmean().backward()
    assert all(layer.gate.weight.grad.abs().sum() > 0 for layer in layers)
    again = copy.deepcopy(gated)
    for layer in layers:
        layer.gate.forward = lambda x, n=layer.gate.out_features: x.new_full((1, 1, n), 1e3)
    torch.testing.assert_close(token_loss(gated, task, BATCH), before, equal_nan=True)
    torch.testing.assert_close(token_loss(again, task, BATCH), halved, equal_nan=True)


@pytest.mark.slow
def test_gates_compile():
    model = llama().eval()
    gate_attention_(model)
    expected = model(BATCH["input_ids"]).logits
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(BATCH["input_ids"]).logits, expected)


def test_what_cannot_be_gated_is_refused():
    model = llama()
    gate_attention_(model)
    with pytest.raises(InputError, match=r"model\.layers\.0\.self_attn has a gate already"):
        gate_attention_(model)
    with pytest.raises(InputError, match="no attention output projection"):
        gate_attention_(FAMILIES["nn.TransformerEncoder"].build())
    with pytest.raises(InputError, match="granularity 'tokenwise' is unknown"):
        gate_attention_(llama(), "tokenwise")
