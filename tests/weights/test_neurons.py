"""Whose neurons are seen, and that they are the ones the module computes with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrizations, weight_norm

from lit_gamma import InputError, Transformer, TransformerConfig, gamma_init_, neurons

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|jit).*deprecated")


class Conv1D(nn.Module):
    """Hugging Face's, for GPT-2: the weight is (d_in, d_out)."""

    def __init__(self, d_out: int, d_in: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_in, d_out))
        self.bias = nn.Parameter(torch.randn(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """Three experts of width 5 on a stream of 4."""

    hidden_size = 4

    def __init__(self, transposed: bool, concatenated: bool = True):
        super().__init__()
        up, down = ((3, 4, 10), (3, 5, 4)) if transposed else ((3, 10, 4), (3, 4, 5))
        self.gate_up_proj = nn.Parameter(torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down))
        self.is_concatenated = concatenated


def by_name(module: nn.Module) -> dict[str, torch.Tensor]:
    return {matrix.name: matrix.weight for matrix in neurons(module)}


def test_the_rows_are_what_the_layer_computes_with():
    x = torch.randn(7, 6)
    conv1d = nn.ModuleDict({"c_fc": Conv1D(5, 6)})
    (matrix,) = neurons(conv1d)
    assert (matrix.role, matrix.weight.shape) == ("mlp_up", (5, 6))
    torch.testing.assert_close(conv1d["c_fc"](x), x @ matrix.weight.T + conv1d["c_fc"].bias)

    image = torch.randn(2, 3, 8, 8)
    conv = nn.ModuleDict({"c": nn.Conv2d(3, 4, (2, 3), bias=False)})
    (matrix,) = neurons(conv)
    patches = F.unfold(image, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(conv["c"](image).flatten(2).mT, patches @ matrix.weight.T)

    # A transposed convolution of stride 1 is a convolution with the flipped kernel.
    up = nn.ModuleDict({"c": nn.ConvTranspose1d(3, 4, 2, bias=False)})
    (matrix,) = neurons(up)
    signal = torch.randn(2, 3, 9)
    kernel = matrix.weight.view(4, 3, 2).flip(-1)
    torch.testing.assert_close(up["c"](signal), F.conv1d(signal, kernel, padding=1))


def test_multihead_attention_is_split_per_projection():
    attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    x = torch.randn(1, 5, 8)
    found = by_name(nn.ModuleDict({"self_attn": attention}))
    q, k, v = (
        (x @ found[f"self_attn.in_proj_weight.{role}"].T).unflatten(2, (2, 4)).transpose(1, 2)
        for role in ("query", "key", "value")
    )
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = mixed @ found["self_attn.out_proj"].T
    torch.testing.assert_close(out, attention(x, x, x)[0])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("concatenated", [False, True])
def test_stacked_experts_are_one_matrix_each_with_gate_and_up_apart(transposed, concatenated):
    experts = nn.ModuleDict({"experts": Experts(transposed, concatenated)})
    found = by_name(experts)
    stored = [p.detach().numpy() for p in experts["experts"].parameters()]
    gate_up, down = (p.transpose(0, 2, 1) if transposed else p for p in stored)
    gate, up = (
        (gate_up[:, :5], gate_up[:, 5:]) if concatenated else (gate_up[:, ::2], gate_up[:, 1::2])
    )
    assert len(found) == 9
    for i in range(3):
        assert np.array_equal(found[f"experts.gate_up_proj.mlp_gate.{i}"], gate[i])
        assert np.array_equal(found[f"experts.gate_up_proj.mlp_up.{i}"], up[i])
        assert np.array_equal(found[f"experts.down_proj.{i}"], down[i])


def test_the_matrices_are_memory_of_the_parameters():
    module = nn.TransformerEncoderLayer(8, 2, 12)
    with torch.no_grad():
        for matrix in neurons(module):
            matrix.weight.zero_()
    assert not any(p.any() for p in module.parameters() if p.ndim == 2)


def test_a_parametrized_weight_is_the_one_the_layer_computes_with_and_is_drawn_through_it():
    module = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(64, 48)),
        weight_norm(nn.Linear(48, 40)),
        parametrizations.spectral_norm(nn.Linear(40, 32)),
    )
    warm = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert list(by_name(module)) == ["0", "1", "2"]
    assert all(torch.equal(tensor, warm[name]) for name, tensor in module.state_dict().items())
    audit = gamma_init_(module, 0.8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(5, 64)
    for layer, matrix, row in zip(module.eval(), neurons(module), audit, strict=True):
        torch.testing.assert_close(layer(x), x @ matrix.weight.T + layer.bias)
        x = layer(x)
        rms = matrix.weight.double().square().mean().sqrt().item()
        assert row.realised_std == pytest.approx(rms)
    assert abs(audit[0].deviation) < 5
    assert abs(audit[1].deviation) < 5
    assert torch.linalg.matrix_norm(module[2].weight, 2).item() == pytest.approx(1, abs=0.3)
    assert [note for note in audit.notes if "parametrization" in note] == [
        "drawn through its parametrization (WeightNorm)",
        "drawn through its parametrization (weight_norm)",
        "drawn through its parametrization (SpectralNorm)",
    ]


def test_roles_can_be_given_by_the_caller_or_by_the_module():
    class Mixer(nn.Module):
        neuron_roles = {"*in_proj": ["mlp_gate", "mlp_up"]}  # noqa: RUF012

        def __init__(self):
            super().__init__()
            self.in_proj = nn.Linear(4, 6)
            self.mystery = nn.Linear(6, 4)

    roles = {m.name: (m.role, m.weight.shape) for m in neurons(Mixer(), {"mystery": "mlp_down"})}
    assert roles == {
        "in_proj.mlp_gate": ("mlp_gate", (3, 4)),
        "in_proj.mlp_up": ("mlp_up", (3, 4)),
        "mystery": ("mlp_down", (4, 6)),
    }
    with pytest.raises(InputError, match=r"'mlp_dwn' is unknown.*mlp_down"):
        list(neurons(Mixer(), {"mystery": "mlp_dwn"}))
    with pytest.raises(InputError, match=r"'mistery' fits no parameter"):
        list(neurons(Mixer(), {"mistery": "mlp_down"}))
    with pytest.raises(InputError, match=r"in_proj .* 6 rows do not split"):
        list(neurons(Mixer(), {"in_proj": ["query", "key", "value", "mlp_up"]}))


def test_heads_that_nothing_tells_are_refused():
    class Attention(nn.Module):
        def __init__(self, **said: int):
            super().__init__()
            self.query, self.key = nn.Linear(6, 12, bias=False), nn.Linear(6, 8, bias=False)
            self.__dict__.update(said)

    shared = nn.ModuleDict({"attn": Attention(num_heads=6, head_dim=2)})
    with pytest.raises(InputError, match=r"attn.key are .* 8 rows .* \(6 of 2\); give its"):
        list(neurons(shared, per_head=True))
    shared["attn"].key = nn.Linear(6, 4, bias=False)  # Three query heads share each of two.
    found = list(neurons(shared, per_head=True))
    heads = (*((i, "query") for i in range(6)), (0, "key"), (1, "key"))
    assert [(m.head, m.role) for m in found] == list(heads)
    assert (found[-1].name, found[-1].label) == ("attn.key.head1", "key.head1")
    assert torch.equal(found[-1].weight, shared["attn"].key.weight[2:])
    with pytest.raises(InputError, match=r"attn.query .* 12 rows .* \(None of None\)"):
        list(neurons(nn.ModuleDict({"attn": Attention()}), per_head=True))


def test_a_compiled_module_has_the_names_of_the_module():
    module = Transformer(TransformerConfig(vocab_size=9, context_length=4, n_layers=1, d_model=8))
    compiled = nn.ModuleDict({"model": torch.compile(module)})
    assert [f"model.{m.name}" for m in neurons(module)] == [m.name for m in neurons(compiled)]
    gamma_init_(compiled, 0.7, generator=torch.Generator().manual_seed(1))
    drawn = module.lm_head.weight.clone()
    gamma_init_(module, 0.7, generator=torch.Generator().manual_seed(1))
    assert torch.equal(drawn, module.lm_head.weight)


def sharded_against_whole(rank: int, world: int) -> None:
    """On one of several processes: draws and reads a sharded module with fused projections."""
    whole, sharded = (nn.TransformerEncoderLayer(8, 2, 13) for _ in range(2))
    for module in (whole, sharded):
        module.extra = nn.ModuleDict({"experts": Experts(False), "c_fc": Conv1D(5, 7)})
    torch.manual_seed(rank)  # the processes need not agree on the global generator
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world,)))
    audits = [
        gamma_init_(module, 0.9, generator=torch.Generator().manual_seed(3))
        for module in (whole, sharded)
    ]
    assert audits[0] == audits[1]
    for per_head in (False, True):
        matrices = (list(neurons(module, per_head=per_head)) for module in (whole, sharded))
        for expected, got in zip(*matrices, strict=True):
            assert got.weight.shape == expected.weight.shape
            full = got.weight.full_tensor() if isinstance(got.weight, DTensor) else got.weight
            assert torch.equal(full, expected.weight), expected.name
    if rank == 0:
        # Names and shapes are asked for on rank 0 alone: no collective may hide in there.
        assert [m.weight.shape for m in neurons(sharded)]


def test_sharded_weights_are_drawn_and_read_as_whole_ones():
    on_ranks(3, sharded_against_whole)  # three shards of 8 rows are uneven


@pytest.mark.parametrize("wrap", ["spectral norm", "pruning", "pruning twice"])
def test_what_a_hook_computes_is_seen_and_drawn(wrap):
    layer = nn.Linear(24, 40)
    if wrap == "spectral norm":
        torch.nn.utils.spectral_norm(layer, n_power_iterations=30)
    else:
        torch.nn.utils.prune.l1_unstructured(layer, "weight", amount=0.5)
    if wrap == "pruning twice":
        torch.nn.utils.prune.random_unstructured(layer, "weight", amount=0.5)
    module = nn.ModuleDict({"fc": layer})
    gamma_init_(module, 0.7, generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # The power iteration settles.
        layer(torch.randn(2, 24))
    (matrix,) = neurons(module)
    assert matrix.name == "fc"
    torch.testing.assert_close(matrix.weight, layer.weight.detach())
    x = torch.randn(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), x @ matrix.weight.T + layer.bias)
    if wrap != "spectral norm":
        assert (matrix.weight == 0).float().mean() >= 0.5


def test_what_holds_no_real_numbers_is_left_alone_and_named():
    module = nn.ModuleDict(
        {"fc": nn.Linear(4, 5), "none": nn.Linear(0, 3), "lazy": nn.LazyLinear(2)}
    )
    module["codes"] = nn.Module()
    codes = torch.randint(-9, 9, (6, 6), dtype=torch.int8)
    module["codes"].weight = nn.Parameter(codes, requires_grad=False)
    module["fourier"] = nn.Linear(4, 4, bias=False, dtype=torch.complex64)
    assert [matrix.name for matrix in neurons(module)] == ["fc"]
    audit = gamma_init_(module, 0.9)
    (left,) = (names for note, names in audit.notes.items() if "complex or codes" in note)
    assert left == ("none", "lazy", "lazy.bias", "codes", "fourier")
    assert torch.equal(module["codes"].weight, codes)
