"""The model against a float64 NumPy implementation, and how its parameters are seen as neurons."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lit_gamma import InputError, Transformer, TransformerConfig, gamma_init_, neurons
from lit_gamma.model.flops import flops_per_token
from lit_gamma.model.rope import Rope, rotate

ERF = np.vectorize(math.erf)
MLP_MATRICES = {"gelu": ("up", "down"), "swiglu": ("up", "gate", "down")}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rotated(x):
    """RoPE: channels i and i + d/2 of position t turn by the angle t / 10000^(2i/d).

    Cosines and sines are rounded to float32, as the model's table holds them.
    """
    half = x.shape[-1] // 2
    angle = np.arange(len(x))[:, None] / 10000.0 ** (np.arange(half) / half)[None, :]
    turn = np.float32(np.cos(angle)) + 1j * np.float32(np.sin(angle))
    z = (x[:, :half] + 1j * x[:, half:]) * turn
    return np.concatenate([z.real, z.imag], axis=1)


def reference_logits(config, parameters, ids):
    """Logits of one sequence, (length, vocab_size), head by head and token by token."""

    def linear(name, x):
        y = x @ parameters[f"{name}.weight"].T
        return y + parameters[f"{name}.bias"] if config.bias else y

    def norm(name, x):
        if config.norm == "layernorm":
            x = x - x.mean(axis=1, keepdims=True)
        rms = np.sqrt((x**2).mean(axis=1, keepdims=True) + config.norm_eps)
        y = x / rms * parameters[f"{name}.weight"]
        return y + parameters[f"{name}.bias"] if config.norm == "layernorm" else y

    def attention(name, x):
        heads = [
            np.split(linear(f"{name}.{p}", x), config.n_heads, axis=1)
            for p in ("query", "key", "value")
        ]
        out = []
        for q, k, v in zip(*heads, strict=True):
            if config.position == "rope":
                q, k = rotated(q), rotated(k)
            for t in range(len(x)):
                scores = k[: t + 1] @ q[t] / math.sqrt(q.shape[1])
                weights = np.exp(scores - scores.max())
                out.append(weights @ v[: t + 1] / weights.sum())
        out = np.concatenate(np.split(np.array(out), config.n_heads), axis=1)
        if config.gate != "none":
            gate = sigmoid(linear(f"{name}.gate", x))
            out *= gate if config.gate == "elementwise" else gate.repeat(q.shape[1], axis=1)
        return linear(f"{name}.out", out)

    def mlp(name, x):
        up = linear(f"{name}.up", x)
        if config.mlp == "gelu":
            return linear(f"{name}.down", up * (1 + ERF(up / math.sqrt(2))) / 2)
        gate = linear(f"{name}.gate", x)
        return linear(f"{name}.down", gate * sigmoid(gate) * up)

    x = parameters["embedding.weight"][ids]
    if config.position == "learned":
        x = x + parameters["position.weight"][: len(ids)]
    for layer in range(config.n_layers):
        for part, f in (("attention", attention), ("mlp", mlp)):
            name = f"blocks.{layer}.{part}"
            if config.norm_position == "pre":
                x = x + f(name, norm(f"{name}_norm", x))
            else:
                x = norm(f"{name}_norm", x + f(name, x))
    if config.norm_position == "pre":
        x = norm("norm", x)
    unembedding = "embedding" if config.tie_embeddings else "lm_head"
    return x @ parameters[f"{unembedding}.weight"].T


def randomized(config, seed=0) -> Transformer:
    """A float64 model whose every parameter, biases and norm scales too, is random."""
    generator = torch.Generator().manual_seed(seed)
    model = Transformer(config).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.7)
    return model


def tokens(vocab_size, *shape, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def configs(draw):
    n_heads = draw(st.integers(1, 4))
    return TransformerConfig(
        vocab_size=draw(st.integers(2, 20)),
        context_length=draw(st.integers(1, 9)),
        n_layers=draw(st.integers(1, 3)),
        n_heads=n_heads,
        d_model=n_heads * draw(st.sampled_from([2, 4, 10])),
        d_head=draw(st.sampled_from([None, 2, 6])),
        d_ff=draw(st.sampled_from([None, 1, 7])),
        norm=draw(st.sampled_from(["rmsnorm", "layernorm"])),
        norm_position=draw(st.sampled_from(["pre", "post"])),
        norm_eps=draw(st.sampled_from([1e-12, 1e-5, 0.3])),
        gate=draw(st.sampled_from(["elementwise", "headwise", "none"])),
        position=draw(st.sampled_from(["rope", "learned"])),
        mlp=draw(st.sampled_from(["gelu", "swiglu"])),
        tie_embeddings=draw(st.booleans()),
        bias=draw(st.booleans()),
    )


@settings(max_examples=60)
@given(configs(), st.data())
def test_forward_equals_a_float64_reference(config, data):
    length = data.draw(st.integers(1, config.context_length))
    model, ids = randomized(config), tokens(config.vocab_size, 2, length)
    parameters = {name: p.detach().numpy() for name, p in model.state_dict().items()}
    logits = model(ids).detach().numpy()
    assert logits.shape == (2, length, config.vocab_size)
    for row in range(2):
        expected = reference_logits(config, parameters, ids[row].numpy())
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=1e-9 * abs(expected).max())


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_a_layernorm_block_is_that_of_torch(norm_position):
    config = TransformerConfig(
        20, 12, 1, 2, 8, gate="none", bias=True, norm="layernorm", norm_position=norm_position
    )
    block = randomized(config).blocks[0]
    theirs = nn.TransformerEncoderLayer(
        8, 2, 32, 0.0, "gelu", config.norm_eps, True, norm_position == "pre", dtype=torch.float64
    )
    ours = block.attention, block.mlp, block.attention_norm, block.mlp_norm
    renamed = {
        "self_attn.out_proj": ours[0].out, "linear1": ours[1].up, "linear2": ours[1].down,
        "norm1": ours[2], "norm2": ours[3],
    }  # fmt: skip
    weights = {
        f"{name}.{leaf}": p
        for name, part in renamed.items()
        for leaf, p in part.state_dict().items()
    }
    for leaf in ("weight", "bias"):
        parts = [getattr(getattr(ours[0], name), leaf) for name in ("query", "key", "value")]
        weights[f"self_attn.in_proj_{leaf}"] = torch.cat(parts)
    theirs.load_state_dict(weights)
    x = torch.randn(3, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    causal = nn.Transformer.generate_square_subsequent_mask(12, dtype=torch.float64)
    torch.testing.assert_close(block(x, None, None, None), theirs(x, causal), rtol=0, atol=1e-10)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_token_changes_its_own_and_later_logits_only(position):
    model = randomized(TransformerConfig(20, 12, n_heads=2, d_model=8, position=position))
    ids = tokens(20, 1, 12)
    logits = model(ids)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 20
        moved = (model(changed) - logits)[0].abs().amax(dim=1)
        assert (moved[:t] == 0).all()
        assert (moved[t:] > 1e-6).all()


@settings(max_examples=40)
@given(configs(), st.data())
def test_a_cache_gives_the_logits_of_the_whole_sequence(config, data):
    length = data.draw(st.integers(1, config.context_length))
    cuts = data.draw(st.lists(st.integers(1, length), max_size=4, unique=True).map(sorted))
    model, ids = randomized(config), tokens(config.vocab_size, 3, length)
    cache = model.new_cache(3)
    parts = torch.tensor_split(ids, cuts, dim=1)
    logits = [model(part, cache=cache) for part in parts if part.shape[1]]
    torch.testing.assert_close(torch.cat(logits, 1), model(ids), rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match=f"{config.context_length + 1} tokens exceeds"):
        model(tokens(config.vocab_size, 3, config.context_length + 1 - length), cache=cache)


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_document_s_logits_do_not_depend_on_the_documents_before_it(position):
    model = randomized(TransformerConfig(20, 12, n_heads=2, d_model=8, position=position))
    ids = tokens(20, 2, 12)
    documents = torch.tensor([[0] * 4 + [1] * 5 + [2] * 3, [0] * 12])
    logits = model(ids, documents)
    torch.testing.assert_close(logits[1], model(ids)[1])
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % 20
        moved = (model(changed, documents) - logits)[0].abs().amax(dim=1) > 1e-6
        assert moved.tolist() == [documents[0, s] == documents[0, t] and s >= t for s in range(12)]


def test_checkpointed_activations_give_the_same_gradients():
    model, ids = randomized(TransformerConfig(20, 12, n_layers=3, d_model=8)), tokens(20, 2, 12)
    gradients = []
    for model.activation_checkpointing in (False, True):
        model.zero_grad()
        model(ids).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *gradients))


@settings(max_examples=20)
@given(configs(), st.data())
def test_the_arithmetic_is_what_torch_counts(config, data):
    length = data.draw(st.integers(1, config.context_length))
    config = replace(config, norm="layernorm")  # RMSNorm's backward has a small product of its own.
    model, ids = Transformer(config), tokens(config.vocab_size, 2, length)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(ids).sum().backward()
    assert counter.get_total_flops() == 2 * length * flops_per_token(model, length)


@settings(max_examples=60)
@given(st.sampled_from([2, 4, 32]), st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_rope_scores_depend_on_the_distance_alone(d_head, i, j, by):
    generator = torch.Generator().manual_seed(d_head)
    q, k = torch.randn(2, 1, 1, 1, d_head, generator=generator, dtype=torch.float64)
    cos, sin = Rope(d_head, 101)(101)
    q, k = (rotate(x.expand(1, 1, 101, d_head), cos, sin)[0, 0] for x in (q, k))
    torch.testing.assert_close(q[i + by] @ k[j + by], q[i] @ k[j], rtol=0, atol=1e-5)
    torch.testing.assert_close(q[i].norm(), q[0].norm())
    if i != j:  # the angle of the fastest channel, |i - j| rad, is never a multiple of 2π
        assert not torch.allclose(q[i], q[j], atol=1e-3)


@pytest.mark.parametrize(("eps", "rms"), [(1e-5, 0.38), (1e-6, 0.79), (1e-12, 1.00)])
def test_the_first_norm_saturates_at_gamma_1_as_the_documents_compute(eps, rms):
    """science.md: output RMS of the first norm at d = 768, γ = 1."""
    model = Transformer(TransformerConfig(256, 256, 1, d_model=768, d_ff=1, norm_eps=eps))
    gamma_init_(model, 1.0, generator=torch.Generator().manual_seed(0))
    outputs = []
    model.blocks[0].attention_norm.register_forward_hook(lambda *args: outputs.append(args[2]))
    model(torch.arange(256)[None])
    assert outputs[0].square().mean().sqrt().item() == pytest.approx(rms, abs=0.007)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vocab_size": 0}, "vocab_size.*0"),
        ({"context_length": -3}, "context_length.*-3"),
        ({"n_layers": 0}, "n_layers.*0"),
        ({"n_heads": 0}, "n_heads.*0"),
        ({"d_model": 0}, "d_model.*0"),
        ({"d_ff": 0}, "d_ff.*0"),
        ({"d_head": 0}, "d_head.*0"),
        ({"norm_eps": -1.0}, r"norm_eps.*-1\.0"),
        ({"gate": "head"}, "gate.*'head'"),
        ({"position": "alibi"}, "position.*'alibi'"),
        ({"mlp": "relu"}, "mlp.*'relu'"),
        ({"norm": "batchnorm"}, "norm.*'batchnorm'"),
        ({"norm_position": "sandwich"}, "norm_position.*'sandwich'"),
        ({"d_model": 12, "n_heads": 5}, "d_model 12.*n_heads 5.*d_head"),
        ({"d_model": 15, "n_heads": 5}, "= 3 is odd.*position: learned"),
    ],
)
def test_an_impossible_shape_is_refused_by_its_values(values, message):
    with pytest.raises(InputError, match=message):
        TransformerConfig(**{"vocab_size": 5, "context_length": 5, **values})


def test_learned_positions_allow_heads_of_odd_width():
    model = Transformer(TransformerConfig(5, 5, n_heads=5, d_model=15, position="learned"))
    assert model(tokens(5, 1, 5)).isfinite().all()


@settings(max_examples=40)
@given(configs())
def test_neurons_sees_every_matrix_once_with_its_role_layer_and_shape(config):
    d, d_ff = config.d_model, config.d_ff or 4 * config.d_model
    width = config.n_heads * (config.d_head or d // config.n_heads)
    expected = Counter([("embedding", None, "embedding", (config.vocab_size, d))])
    if config.position == "learned":
        expected[("position", None, "position", (config.context_length, d))] += 1
    if not config.tie_embeddings:
        expected[("lm_head", None, "lm_head", (config.vocab_size, d))] += 1
    for layer in range(config.n_layers):
        shapes = dict.fromkeys(("query", "key", "value"), (width, d))
        shapes["attention_out"] = (d, width)
        if config.gate != "none":
            shapes["attention_gate"] = (
                width if config.gate == "elementwise" else config.n_heads,
                d,
            )
        for name in MLP_MATRICES[config.mlp]:
            shapes[f"mlp_{name}"] = (d, d_ff) if name == "down" else (d_ff, d)
        for role, shape in shapes.items():
            expected[(role, layer, f"layer{layer}.{role}", shape)] += 1

    model = Transformer(config)
    seen = list(neurons(model))
    assert Counter((m.role, m.layer, m.label, tuple(m.weight.shape)) for m in seen) == expected
    for matrix in seen:
        parameter = model.get_parameter(f"{matrix.name}.weight")
        assert matrix.weight.data_ptr() == parameter.data_ptr()
        assert not matrix.weight.requires_grad
        matrix.weight.fill_(0.25)
    assert all((p == 0.25).all() for p in model.parameters() if p.ndim == 2)


def test_a_matrix_of_another_architecture_keeps_its_layer_and_has_the_role_other():
    module = nn.Module()
    module.h = nn.ModuleList(nn.ModuleDict({"proj": nn.Linear(3, 4)}) for _ in range(12))
    *_, last = neurons(module)
    assert (last.name, last.role, last.layer) == ("h.11.proj", "other", 11)
    assert last.label == "layer11.proj"
