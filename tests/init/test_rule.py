"""The γ rule: what is drawn, from which fan-in, and what is left alone."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_gamma import InputError, Transformer, TransformerConfig, gamma_init_

D_MODEL, D_FF, LAYERS = 48, 136, 3

D_IN = {"embedding": D_MODEL, "position": D_MODEL, "lm_head": D_MODEL} | {
    f"blocks.{layer}.{name}": d_in
    for layer in range(LAYERS)
    for name, d_in in {
        "attention.query": D_MODEL,
        "attention.key": D_MODEL,
        "attention.value": D_MODEL,
        "attention.gate": D_MODEL,
        "attention.out": D_MODEL,
        "mlp.up": D_MODEL,
        "mlp.gate": D_MODEL,
        "mlp.down": D_FF,
    }.items()
}
"""Every matrix of the model below with the d_in of the rule; an embedding row has d_model."""

GROUPS = {
    "embedding": ("embedding", "position"),
    "attention_qk": ("query", "key"),
    "attention_vo": ("value", "attention.gate", "out"),
    "mlp": ("up", "mlp.gate", "down"),
    "lm_head": ("lm_head",),
}
RESIDUAL = ("attention.out", "mlp.down")


def model(**config) -> Transformer:
    """A model with every kind of parameter."""
    return Transformer(
        TransformerConfig(
            **{
                "vocab_size": 500,
                "context_length": 40,
                "n_layers": LAYERS,
                "n_heads": 4,
                "d_model": D_MODEL,
                "d_ff": D_FF,
                "position": "learned",
                "mlp": "swiglu",
                "bias": True,
                **config,
            }
        )
    )


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stds(module: nn.Module) -> dict[str, float]:
    """Root mean square of every matrix, in float64."""
    return {
        name.removesuffix(".weight"): np.sqrt(np.mean(p.detach().double().numpy() ** 2))
        for name, p in module.named_parameters()
        if p.ndim == 2
    }


def assert_stds(module: nn.Module, expected: dict[str, float]) -> None:
    """Every matrix, and no other, within 5 standard errors, σ / sqrt(2 n d_in), of its σ."""
    found = stds(module)
    assert found.keys() == expected.keys()
    for name, std in expected.items():
        error = std / math.sqrt(2 * module.get_parameter(f"{name}.weight").numel())
        assert abs(found[name] - std) < 5 * error, name


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same_state(module: nn.Module, before: dict[str, torch.Tensor]) -> None:
    for name, p in module.named_parameters():
        assert torch.equal(p, before[name]), name


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.5, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("gate", ["elementwise", "headwise"])
def test_every_matrix_has_std_d_in_to_the_minus_gamma(gamma, gate):
    module = model(gate=gate)
    gamma_init_(module, gamma, generator=seeded(0))
    assert_stds(module, {name: d_in**-gamma for name, d_in in D_IN.items()})


def test_one_std_for_every_matrix_and_the_audit_says_which_gamma_that_is():
    module = model()
    audit = gamma_init_(module, None, std=0.02, generator=seeded(17))
    assert_stds(module, dict.fromkeys(D_IN, 0.02))
    for row in audit:
        assert row.expected_std == 0.02
        assert row.shape[1] ** -row.gamma == pytest.approx(0.02, rel=1e-12)
    assert audit.headline().startswith(
        "27 matrices drawn with std 0.02, that is gamma 0.796 (d_in 136) to 1.01 (d_in 48); "
    )
    widths = {128: 0.81, 256: 0.71, 768: 0.59, 2048: 0.51}  # as science.md has them
    for d_in, gamma in widths.items():
        (row,) = gamma_init_(nn.Linear(d_in, 9), None, std=0.02)
        assert row.gamma == pytest.approx(gamma, abs=0.005)
    (row,) = gamma_init_(nn.Linear(1, 9), None, std=0.02)
    assert row.gamma == math.inf


def test_gpt2_s_initialization_is_one_std_scaled_by_depth():
    """Of a group that is overridden, γ decides."""
    module = model()
    gamma_init_(module, None, {"lm_head": 0.5}, "depth", generator=seeded(18), std=0.02)
    scaled = 0.02 / math.sqrt(2 * LAYERS)
    expected = {name: scaled if name.endswith(RESIDUAL) else 0.02 for name in D_IN}
    assert_stds(module, expected | {"lm_head": D_MODEL**-0.5})


@pytest.mark.parametrize("group", GROUPS)
def test_an_override_reaches_its_group_and_no_other(group):
    module = model()
    gamma_init_(module, 0.5, {group: 0.9}, generator=seeded(1))
    rate = {name: 0.9 if name.endswith(GROUPS[group]) else 0.5 for name in D_IN}
    assert_stds(module, {name: d_in ** -rate[name] for name, d_in in D_IN.items()})


def test_depth_scales_exactly_the_projections_into_the_residual_stream():
    plain, scaled = model(), model()
    gamma_init_(plain, 0.8, generator=seeded(2))
    gamma_init_(scaled, 0.8, residual_scale="depth", generator=seeded(2))
    for name in D_IN:
        factor = 1 / math.sqrt(2 * LAYERS) if name.endswith(RESIDUAL) else 1.0
        weights = [m.get_parameter(f"{name}.weight") for m in (plain, scaled)]
        torch.testing.assert_close(weights[1], weights[0] * factor, rtol=1e-6, atol=0)


def test_complexity_control_uses_d_model_everywhere_scales_by_depth_and_leaves_biases():
    module = model()
    biases = {name: b for name, b in state(module).items() if name.endswith("bias")}
    gamma_init_(module, 0.7, {"mlp": 1.1}, preset="complexity_control", generator=seeded(3))
    expected = {name: D_MODEL ** -(1.1 if ".mlp." in name else 0.7) for name in D_IN}
    for name in expected:
        if name.endswith(RESIDUAL):
            expected[name] /= math.sqrt(2 * LAYERS)
    assert_stds(module, expected)
    assert len(biases) == LAYERS * 8
    for name, bias in biases.items():
        assert bias.any()
        assert torch.equal(module.get_parameter(name), bias), name


def test_biases_become_zero_and_norm_scales_one():
    module = model()
    with torch.no_grad():
        for p in module.parameters():
            p.fill_(7.0)
    gamma_init_(module, 1.0)
    vectors = {name: p for name, p in module.named_parameters() if p.ndim == 1}
    assert len(vectors) == LAYERS * (8 + 2) + 1
    for name, vector in vectors.items():
        assert (vector == (0 if name.endswith("bias") else 1)).all(), name


def test_a_tied_table_is_drawn_once_at_the_rate_of_embeddings():
    tied, untied = model(tie_embeddings=True), model()
    audit = gamma_init_(tied, 0.5, {"embedding": 0.8}, generator=seeded(4))
    gamma_init_(untied, 0.5, {"embedding": 0.8}, generator=seeded(4))
    assert tied.lm_head.weight is tied.embedding.weight
    assert sorted(row.name for row in audit) == sorted(D_IN.keys() - {"lm_head"})
    for name, p in tied.named_parameters():
        assert torch.equal(p, untied.get_parameter(name)), name
    with pytest.raises(InputError, match="'lm_head' has no matrix here"):
        gamma_init_(tied, 0.5, {"lm_head": 0.3})


def test_the_generator_alone_decides_and_the_global_one_is_the_default():
    first, again, other = model(), model(), model()
    before = torch.get_rng_state()
    gamma_init_(first, generator=seeded(5))
    gamma_init_(again, generator=seeded(5))
    gamma_init_(other, generator=seeded(6))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(again, state(first))
    assert not torch.equal(other.lm_head.weight, first.lm_head.weight)
    torch.manual_seed(5)
    gamma_init_(other)
    assert_same_state(other, state(first))


def test_entries_are_gaussian_and_matrices_independent():
    module = model(d_model=128, d_ff=128, mlp="gelu", n_layers=2)
    gamma_init_(module, 1.0, generator=seeded(7))
    matrices = [p.detach().double().numpy() for p in module.parameters() if p.shape == (128, 128)]
    assert len(matrices) == 2 * 7
    z = np.stack([m.ravel() / m.std() for m in matrices])
    n = z.size
    # Standard errors of a Gaussian's moments: mean 1, skewness sqrt(6), kurtosis sqrt(24), / √n.
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**3).mean()) < 5 * math.sqrt(6 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(24 / n)
    assert abs(z).max() > 4  # not truncated: 14 of 230,000 entries lie beyond
    for a, b in itertools.combinations(z, 2):
        assert abs(np.mean(a * b)) < 5 / math.sqrt(z.shape[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_audit_holds_the_realised_std_of_every_tensor(dtype):
    module = model().to(dtype)
    audit = gamma_init_(module, 0.6, {"mlp": 1.0}, residual_scale="depth", generator=seeded(8))
    realised = stds(module)
    assert [row.name for row in audit] == list(realised)
    for row in audit:
        rate = 1.0 if ".mlp." in row.name else 0.6
        factor = math.sqrt(2 * LAYERS) if row.name.endswith(RESIDUAL) else 1.0
        expected = D_IN[row.name] ** -rate / factor
        assert row.gamma == rate
        assert row.shape == tuple(module.get_parameter(f"{row.name}.weight").shape)
        assert row.expected_std == pytest.approx(expected, rel=1e-12)
        assert row.realised_std == pytest.approx(realised[row.name], rel=1e-12)
        errors = (realised[row.name] / expected - 1) * math.sqrt(2 * math.prod(row.shape))
        assert row.deviation == pytest.approx(errors, rel=1e-9)
        assert abs(row.deviation) < 5


def test_the_printed_audit_is_a_table_of_one_line_per_tensor():
    audit = gamma_init_(model(), 0.8, generator=seeded(9))
    head, *lines = str(audit).splitlines()
    assert head.split() == ["name", "role", "shape", "gamma", "expected", "realised", "error/se"]
    assert len({len(line) for line in [head, *lines]}) == 1  # aligned
    for row, line in zip(audit, lines, strict=True):
        name, role, shape, *numbers = line.split()
        assert (name, role, shape) == (row.name, row.role, f"{row.shape[0]}x{row.shape[1]}")
        values = (row.gamma, row.expected_std, row.realised_std, row.deviation)
        assert [float(x) for x in numbers] == pytest.approx(values, rel=1e-3, abs=0.006)


def test_any_module_is_initialized_by_its_own_fan_in():
    module = nn.Sequential(nn.Linear(200, 300), nn.LayerNorm(300), nn.Linear(300, 100))
    gamma_init_(module, 0.75, generator=seeded(10))
    assert_stds(module, {"0": 200**-0.75, "2": 300**-0.75})
    assert (module[1].weight == 1).all()
    for layer in module:
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("gamma", "overrides", "dtype", "message"),
    [
        (math.nan, {}, torch.float32, "gamma.*nan"),
        (math.inf, {}, torch.float32, "gamma.*inf"),
        (-0.1, {}, torch.float32, r"gamma.*-0\.1"),
        (0.5, {"mlp": math.nan}, torch.float32, "mlp.*nan"),
        (0.5, {"lm_head": -1.0}, torch.float32, r"lm_head.*-1\.0"),
        (0.5, {"attention": 1.0}, torch.float32, "'attention'.*attention_qk"),
        (1e6, {}, torch.float32, r"1000000\.0.*embedding"),
        # 48^-23 = 2e-39 is no normal float32; everything before lm_head could have been drawn
        (0.5, {"lm_head": 23.0}, torch.float32, r"23\.0.*lm_head"),
        (3.0, {}, torch.float16, r"3\.0.*embedding.*float16"),
    ],
)
def test_an_impossible_gamma_is_named_and_nothing_is_overwritten(gamma, overrides, dtype, message):
    module = model().to(dtype)
    before = state(module)
    with pytest.raises(InputError, match=message):
        gamma_init_(module, gamma, overrides)
    assert_same_state(module, before)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"residual_scale": "Depth"}, "'Depth'"),
        ({"preset": "paper"}, "'paper'.*complexity_control"),
        ({"std": 0.02}, r"gamma is 0\.5, std \(init_std\) is 0\.02: give one"),
        ({"gamma": None}, r"gamma is None, std \(init_std\) is None: give one"),
        ({"gamma": None, "std": math.nan}, "std.*must be.*nan"),
        ({"gamma": None, "std": -0.02}, r"std.*must be.*-0\.02"),
        ({"gamma": None, "std": 1e-39}, "embedding a std of 1e-39.*larger std"),
        (
            {"gamma": None, "std": 0.02, "preset": "complexity_control"},
            "give gamma in place of std",
        ),
    ],
)
def test_an_unknown_option_is_refused_and_nothing_is_overwritten(option, message):
    module = model()
    before = state(module)
    with pytest.raises(InputError, match=message):
        gamma_init_(module, **{"gamma": 0.5, **option})
    assert_same_state(module, before)


def test_the_smallest_std_a_dtype_holds_is_accepted():
    module = model()
    gamma_init_(module, 0.5, {"lm_head": 22.0}, generator=seeded(11))  # 48^-22 = 1e-37
    assert stds(module)["lm_head"] == pytest.approx(48.0**-22, rel=0.05)
    half = model().half()
    gamma_init_(half, 1.5, generator=seeded(12))
    assert stds(half)["lm_head"] == pytest.approx(48.0**-1.5, rel=0.05)


def notes(audit) -> dict[str, tuple[str, ...]]:
    return {note.partition(":")[0]: names for note, names in audit.notes.items()}


def test_frozen_lora_and_odd_parameters_are_treated_as_the_audit_says():
    module = nn.ModuleDict(
        {"frozen": nn.Linear(9, 9), "emb": nn.Embedding(40, 16, padding_idx=3), "odd": nn.Module()}
    )
    module["frozen"].requires_grad_(False)
    module["odd"].mixing = nn.Parameter(torch.ones(30, 20))
    module["odd"].scale = nn.Parameter(torch.full((20,), 1e-4))
    module["odd"].lora_A = nn.Linear(20, 4, bias=False)
    before = state(module)
    audit = gamma_init_(module, 0.6, generator=seeded(13))
    assert notes(audit) == {
        "left alone, frozen": ("frozen", "frozen.bias"),
        "left alone, LoRA": ("odd.lora_A",),
        "not recognised, drawn by the rule": ("odd.mixing",),
        "left as made, a vector that is neither a bias nor a norm's scale": ("odd.scale",),
    }
    for name, p in module.named_parameters():
        kept = name not in ("odd.mixing", "emb.weight")
        assert torch.equal(p, before[name]) == kept, name
    assert [row.name for row in audit] == ["emb", "odd.mixing"]
    assert all(abs(row.deviation) < 5 for row in audit)
    assert audit[1].expected_std == 20**-0.6
    assert not module["emb"].weight[3].any()
    for text in (str(audit), audit.summary()):
        assert "left alone, frozen: frozen, frozen.bias" in text


class OffsetRMSNorm(nn.RMSNorm):
    """Gemma's: the scale is one plus the weight."""

    def forward(self, x):
        return nn.functional.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


class OwnLayerNorm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.a = nn.Parameter(torch.randn(d))
        self.b = nn.Parameter(torch.randn(d))

    def forward(self, x):
        return self.a * (x - x.mean(-1, True)) / x.std(-1, keepdim=True) + self.b


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(1, 8), OffsetRMSNorm(8), OwnLayerNorm(8)]
)
def test_a_norm_becomes_neutral_whatever_its_parameters_are_called(norm):
    for p in norm.parameters():
        nn.init.normal_(p)
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    gamma_init_(norm)
    assert not calls
    x = torch.randn(3, 8)
    centred = x if isinstance(norm, nn.RMSNorm) else x - x.mean(-1, keepdim=True)
    y = norm(x)
    torch.testing.assert_close(y / y.norm(dim=-1, keepdim=True),
                               centred / centred.norm(dim=-1, keepdim=True))  # fmt: skip
    assert y.square().mean().item() == pytest.approx(
        1, abs=0.2
    )  # std(correction=1) in OwnLayerNorm


def test_each_projection_in_a_fused_one_and_each_expert_has_its_own_rate_and_fan_in():
    layer = nn.TransformerEncoderLayer(64, 4, 96)
    audit = gamma_init_(layer, 0.5, {"attention_qk": 0.9}, generator=seeded(14))
    expected = {"query": 64**-0.9, "key": 64**-0.9, "value": 64**-0.5, "mlp_down": 96**-0.5}
    for row in audit:
        assert row.expected_std == expected.get(row.role, 64**-0.5)
        assert abs(row.deviation) < 5
    parts = np.split(layer.self_attn.in_proj_weight.detach().numpy(), 3)
    realised = [np.sqrt(np.mean(part.astype(np.float64) ** 2)) for part in parts]
    assert [row.realised_std for row in audit[:3]] == pytest.approx(realised)
    assert not layer.self_attn.in_proj_bias.any()


def test_on_the_meta_device_the_plan_is_audited_and_the_weights_follow_later():
    with torch.device("meta"):
        module = model()
    audit = gamma_init_(module, 0.8)
    assert [row.expected_std for row in audit] == [D_IN[row.name] ** -0.8 for row in audit]
    assert all(math.isnan(row.realised_std) for row in audit)
    assert "meta device: call module.to_empty" in str(audit)
    module.to_empty(device="cpu")
    gamma_init_(module, 0.8, generator=seeded(15))
    reference = model()
    gamma_init_(reference, 0.8, generator=seeded(15))
    assert_same_state(module, state(reference))


def test_the_summary_has_a_line_per_role_and_std():
    audit = gamma_init_(model(), 0.8, {"mlp": 1.0}, generator=seeded(16))
    head, *lines = audit.summary().splitlines()
    assert head.split() == ["role", "matrices", "d_in", "gamma", "expected", "realised", "error/se"]
    found = {line.split()[0]: [float(x) for x in line.split()[1:]] for line in lines}
    assert len(lines) == len(found) == 11
    down = [row for row in audit if row.role == "mlp_down"]
    realised = np.sqrt(np.mean([row.realised_std**2 for row in down]))
    n_matrices, d_in, gamma, expected, shown, _ = found["mlp_down"]
    assert (n_matrices, d_in, gamma) == (LAYERS, D_FF, 1.0)
    assert [expected, shown] == pytest.approx([1 / D_FF, realised], rel=1e-3)
    assert all(abs(values[-1]) < 5 for values in found.values())


class StateSpace(nn.Module):
    """The parameters of a selective state space, by the names of the field."""

    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(6, 12, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, 5).log().repeat(6, 1))
        self.dt_bias = nn.Parameter(torch.full((6,), -4.0))
        self.kept = nn.Linear(6, 6)
        self.kept.weight._no_reinit = True


def test_the_time_scales_of_a_state_space_are_left_alone_and_named():
    module = StateSpace()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    audit = gamma_init_(module, 0.9, generator=seeded(0))
    (left,) = (names for note, names in notes(audit).items() if "state space" in note)
    assert left == ("A_log", "dt_bias", "kept")
    for name in ("A_log", "dt_bias", "kept.weight"):
        assert torch.equal(module.state_dict()[name], before[name])
    assert [row.name for row in audit] == ["in_proj"]
    assert not torch.equal(module.in_proj.weight, before["in_proj.weight"])


@pytest.mark.parametrize(
    ("module", "biases"),
    [
        (nn.LSTM(4, 5, 2), ("bias_ih_l0", "bias_hh_l1")),
        (nn.GRUCell(4, 5), ("bias_ih", "bias_hh")),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), ("bias_k", "bias_v", "in_proj_bias")),
    ],
)
def test_biases_are_biases_whatever_their_shape_and_name(module, biases):
    for bias in biases:
        nn.init.ones_(getattr(module, bias))
    gamma_init_(module, 1.0, generator=seeded(0))
    for bias in biases:
        assert not getattr(module, bias).any(), bias


@pytest.mark.parametrize("dim", [0, 1, -1, None])
def test_old_style_weight_norm_is_drawn_over_whatever_it_normalizes(dim):
    layer = torch.nn.utils.weight_norm(nn.Linear(64, 32), dim=dim)
    (row,) = gamma_init_(layer, 0.7, generator=seeded(0))
    x = torch.randn(5, 64, generator=seeded(1))
    weight = layer(x)  # The hook computes it before a forward.
    assert row.realised_std == pytest.approx(64**-0.7, rel=0.05)
    assert layer.weight.std().item() == pytest.approx(row.realised_std, rel=0.01)
    assert weight.isfinite().all()
