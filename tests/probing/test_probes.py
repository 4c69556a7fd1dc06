"""Norms and attention on a probe batch: the values, and that training does not notice."""

from __future__ import annotations

import lightning
import numpy as np
import pandas
import pytest
import torch
from helpers.references import share, sink, states
from helpers.runs import Noisy, fit, tiny_module
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_gamma import InputError, Transformer, gamma_init_, metrics, trajectory
from lit_gamma.callbacks import AttentionSink, HiddenStates, NormSaturation, Schedule
from lit_gamma.probing.attention import watched_attention
from lit_gamma.probing.forward import undisturbed
from lit_gamma.probing.norms import watched_norms
from lit_gamma.probing.stream import watched_stream

EVERY = Schedule(every=1)


@pytest.mark.parametrize(
    ("d_model", "gamma", "eps", "expected"),
    [(768, 1, 1e-5, 0.38), (768, 1, 1e-6, 0.79), (4096, 0.8, 1e-5, 0.38), (768, 0.5, 1e-5, 1)],
)
def test_the_first_norm_saturates_as_computed_by_hand(d_model, gamma, eps, expected):
    model = nn.Sequential(nn.Embedding(200, d_model), nn.RMSNorm(d_model, eps))
    gamma_init_(model, gamma, generator=torch.Generator().manual_seed(0))
    with undisturbed(model), watched_norms(model) as seen:
        out = model(torch.arange(200)[None])
    assert [norm.path for norm in seen] == ["1"]
    assert round(seen[0].values["normalized_rms"].item(), 2) == expected
    assert seen[0].values["normalized_rms"].item() == pytest.approx(out.square().mean().sqrt())
    share = 1 / (1 + d_model ** (-2 * gamma) / eps)
    assert seen[0].values["epsilon_share"].item() == pytest.approx(share, rel=0.01)


def explicit(model: Transformer, ids: np.ndarray) -> tuple[list[np.ndarray], list[dict]]:
    """Attention weights of every layer, (batch, heads, length, length), and what is to be known of
    the residual stream before and after it, in float64 NumPy."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    n, length = ids.shape
    heads, half = model.config.n_heads, model.config.head_width // 2
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(half) / half)

    def norm(x):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.norm_eps)

    def split(x):
        return x.reshape(n, length, heads, -1).transpose(0, 2, 1, 3)

    def turn(x):
        a, b = x[..., :half], x[..., half:]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def gelu(x):
        return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()

    x, found = w["embedding.weight"][ids], []
    stream = [states(x)]
    for i in range(model.config.n_layers):
        b = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if f"blocks.{i}." in k}
        y = norm(x) * b["attention_norm.weight"]
        q, k, v = (split(y @ b[f"attention.{p}.weight"].T) for p in ("query", "key", "value"))
        logits = turn(q) @ turn(k).swapaxes(-1, -2) / np.sqrt(2 * half)
        logits[..., ~np.tri(length, dtype=bool)] = -np.inf
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found.append((weights, logits.max((0, 2, 3))))
        o = (weights @ v).transpose(0, 2, 1, 3).reshape(n, length, -1)
        write = o @ b["attention.out.weight"].T
        x = x + write
        attention_share = share(write, x)
        y = norm(x) * b["mlp_norm.weight"]
        write = gelu(y @ b["mlp.up.weight"].T) @ b["mlp.down.weight"].T
        x = x + write
        shares = {"attention_share": attention_share, "mlp_share": share(write, x)}
        stream.append(states(x) | shares)
    return found, stream


class Weights(lightning.Callback):
    """The weights and the first samples of every step."""

    def __init__(self):
        self.states, self.batches = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        state = pl_module.transformer.state_dict()
        self.states[trainer.global_step] = {name: p.clone() for name, p in state.items()}
        self.batches[trainer.global_step] = batch["input_ids"][:8]


def test_the_record_of_our_transformer_is_that_of_an_explicit_computation(tmp_path):
    kept = Weights()
    module = tiny_module(0.5, n_heads=2, gate="none", norm_eps=1e-3)
    probes = (probe(Schedule(every=4)) for probe in (NormSaturation, AttentionSink, HiddenStates))
    trainer = fit(tmp_path, *probes, kept, module=module, max_steps=9)
    tables = trajectory.load(trainer.log_dir)
    for table in tables.values():
        assert sorted(set(table["step"])) == [0, 4, 8, 9]
    for step in (0, 8):
        model = Transformer(module.transformer.config)
        model.load_state_dict(kept.states[step])
        ids = kept.batches[0].numpy()  # the probe batch stays the first one
        rows = tables["attention_sink"].query(f"step == {step}")
        assert list(zip(rows["layer"], rows["head"], strict=True)) == [
            (0, 0), (0, 1), (1, 0), (1, 1)
        ]  # fmt: skip
        attention, stream = explicit(model, ids)
        for layer, (weights, largest) in enumerate(attention):
            for name, values in (sink(weights) | {"largest_logit": largest}).items():
                found = rows[rows["layer"] == layer][name]
                np.testing.assert_allclose(found, values, rtol=1e-4)
        rows = tables["hidden_states"].query(f"step == {step}").to_dict("records")
        assert [row["module"][-8:] for row in rows] == ["ks.input", "blocks.0", "blocks.1"]
        for row, expected in zip(rows, stream, strict=True):
            assert (row["n_tokens"], row["width"]) == (8 * 9, 16)
            for name, value in expected.items():
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
        first = tables["norm_saturation"].query(f"step == {step}").iloc[0]
        x = kept.states[step]["embedding.weight"].double().numpy()[ids]
        share = 1e-3 / ((x**2).mean(-1) + 1e-3)
        assert first["module"] == "transformer.blocks.0.attention_norm"
        assert first["epsilon_share"] == pytest.approx(share.mean(), rel=1e-5)
        assert first["normalized_rms"] == pytest.approx(np.sqrt((1 - share).mean()), rel=1e-5)
        assert first["input_rms"] == pytest.approx(np.sqrt((x**2).mean()), rel=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_llama_s_grouped_heads_attend_as_it_says_itself(implementation):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    gamma_init_(model, 0.2, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(40, (3, 12), generator=torch.Generator().manual_seed(1))
    explicit = model.eval()(ids, output_attentions=True).attentions
    model.set_attn_implementation(implementation)
    with undisturbed(model), watched_attention(model) as seen:
        model(input_ids=ids)
    assert [each.path for each in seen] == [f"model.layers.{i}.self_attn" for i in range(2)]
    for each, weights in zip(seen, explicit, strict=True):
        expected = sink(weights.detach().double().numpy())
        mass, entropy = each.values["first_token_mass"], each.values["entropy"]
        np.testing.assert_allclose(mass, expected["first_token_mass"], rtol=1e-4)
        np.testing.assert_allclose(entropy, expected["entropy"], rtol=1e-4)
        assert expected["entropy_over_null"].max() < 0.99  # far enough from uniform to tell


EARLY = nn.functional.scaled_dot_product_attention  # A name that was bound before anybody watched.


class Attends(nn.Module):
    """Four ways to the same attention of one head, and torch.nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.multi = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    def forward(self, x):
        q = x[:, None]
        logits = q @ q.mT / 8**0.5
        softmaxes = (nn.functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)
        return [
            EARLY(q, q, q),
            *(softmax(logits, -1) @ q for softmax in softmaxes),
            *self.multi(x, x, x),
            *self.multi(x, x, x, need_weights=False),
            *self.multi(x, x, x, average_attn_weights=False),
        ]


def test_attention_is_seen_whatever_it_is_called_by_and_comes_out_the_same():
    x = torch.randn(3, 5, 8)
    module = Attends()
    expected = module(x)
    with undisturbed(module), watched_attention(module) as seen:
        out = module(x)
    assert [each.path for each in seen] == [*[""] * 5, *["multi"] * 3]
    for got, value in zip(out, expected, strict=True):
        if value is None:
            assert got is None
        else:
            torch.testing.assert_close(got, value)
    logits = x @ x.mT / 8**0.5
    one_head = sink(torch.softmax(logits, -1)[:, None].double().numpy(), causal=False)
    two_heads = sink(expected[-1].detach().double().numpy(), causal=False)
    for each in seen:
        reference = one_head if each.path == "" else two_heads
        for name in ("first_token_mass", "entropy"):
            np.testing.assert_allclose(each.values[name].detach(), reference[name], rtol=1e-5)
        largest = logits.max().expand(1) if each.path == "" else torch.full((2,), torch.nan)
        torch.testing.assert_close(each.values["largest_logit"], largest, equal_nan=True)


def test_attention_weights_are_those_of_torch():
    generator = torch.Generator().manual_seed(0)
    q, k, v, bias = (torch.randn(s, generator=generator) for s in (
        (2, 4, 5, 8), (2, 2, 6, 8), (2, 2, 6, 6), (2, 1, 5, 6)))  # fmt: skip
    cases = [{}, {"is_causal": True}, {"attn_mask": bias}, {"attn_mask": bias > -1, "scale": 0.7}]
    for options in cases:
        weights = metrics.attention_weights(q, k, enable_gqa=True, **options)
        out = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options)
        torch.testing.assert_close(weights @ v.repeat_interleave(2, 1), out)
        with torch.autocast("cpu", torch.bfloat16):
            again = metrics.attention_weights(q, k, enable_gqa=True, **options)
        assert torch.equal(again, weights)


def test_training_does_not_notice_the_probe(tmp_path):
    probes = NormSaturation(EVERY), AttentionSink(EVERY), HiddenStates(EVERY)
    ends = []
    for callbacks in ((), probes):
        lightning.seed_everything(3)
        module = Noisy()
        trainer = fit(tmp_path, *callbacks, module=module, max_steps=5, limit_train_batches=5)
        logged = trainer.callback_metrics["loss"]
        ends.append([*module.state_dict().values(), logged, module.mean.compute(), torch.rand(3)])
    assert module.modes.count((True, False)) == 5
    assert module.modes.count((False, False)) == 21  # W_0 .. W_5, and once to see what there is
    for without, with_ in zip(*ends, strict=True):
        assert torch.equal(without, with_)
    heads = trajectory.load(trainer.log_dir)["attention_sink"].query("step == 5")
    assert len(heads) == 2  # of a compiled module
    assert torch.nn.functional.scaled_dot_product_attention.__module__ != "lit_gamma.attention"


def test_a_resumed_record_is_that_of_an_uninterrupted_run(tmp_path):
    def callbacks():
        saving = ModelCheckpoint(every_n_train_steps=3, save_top_k=-1)
        probes = NormSaturation(EVERY), AttentionSink(EVERY, samples=3), HiddenStates(EVERY)
        return *probes, saving

    whole = fit(tmp_path, *callbacks(), max_steps=6, enable_checkpointing=True)
    (half,) = (p for p in (tmp_path / "version_0").rglob("*.ckpt") if "step=3" in p.name)
    resumed = fit(tmp_path, *callbacks(), max_steps=6, ckpt_path=half, enable_checkpointing=True)
    expected = trajectory.load(whole.log_dir)
    for name, table in trajectory.load(resumed.log_dir).items():
        pandas.testing.assert_frame_equal(table, expected[name], check_exact=True)


def test_what_cannot_be_probed_is_said(tmp_path):
    class ByHand(Noisy):
        automatic_optimization = False

    with pytest.raises(InputError, match=r"ByHand optimizes by hand.*give forward="):
        fit(tmp_path, NormSaturation(), module=ByHand(), max_steps=1)
    module = tiny_module()
    module.training_step = lambda batch, i: {"loss": module.transformer.embedding.weight.sum()}
    with pytest.raises(InputError, match=r"AttentionSink sees no attention in .*LanguageModel"):
        fit(tmp_path, AttentionSink(), module=module, max_steps=1)
    with pytest.raises(InputError, match=r"NormSaturation finds no norm in .*LanguageModel"):
        fit(tmp_path, NormSaturation(), module=module, max_steps=1)
    with pytest.raises(InputError, match=r"HiddenStates finds no block in .*LanguageModel"):
        fit(tmp_path, HiddenStates(), module=module, max_steps=1)
    with pytest.raises(InputError, match="samples must be at least 1, got 0"):
        NormSaturation(samples=0)


def test_the_user_s_function_runs_the_probe_batch(tmp_path):
    ran = []

    def forward(module, batch):
        ran.append(batch["input_ids"].shape)
        module(batch["input_ids"])

    trainer = fit(tmp_path, NormSaturation(samples=2, forward=forward), max_steps=1)
    assert set(ran) == {(2, 9)}
    assert len(trajectory.load(trainer.log_dir)["norm_saturation"]) == 2 * 5


class Parallel(nn.Module):
    """A block whose parts are joined in place before they are added to the stream."""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"out": nn.Linear(8, 8, bias=False)})
        self.mlp = nn.ModuleDict({"down": nn.Linear(8, 8, bias=False)})

    def forward(self, x):
        out = self.mlp["down"](x).relu()
        out += self.attention["out"](x) * 0.5
        return nn.functional.dropout(out, training=False) + x


def test_what_is_written_is_followed_through_sums_in_place():
    block, x = Parallel(), torch.randn(3, 5, 8)
    with undisturbed(block), watched_stream(block) as seen:
        whole = block(x).double().numpy()
        attention = (block.attention["out"](x) * 0.5).double().numpy()
        mlp = block.mlp["down"](x).relu().double().numpy()
    values = seen[-1].values
    assert values["attention_share"].item() == pytest.approx(share(attention, whole), rel=1e-5)
    assert values["mlp_share"].item() == pytest.approx(share(mlp, whole), rel=1e-5)


@pytest.mark.parametrize("n_tokens", [24, 96])  # fewer than channels, and more
def test_random_states_read_one_over_their_nulls(n_tokens):
    block, draw = Parallel(), torch.Generator().manual_seed(0)
    block.forward = lambda x: torch.randn(n_tokens, 64, generator=draw)
    with watched_stream(block) as seen:
        for _ in range(400):
            block(torch.zeros(1, 64))
    found = [HiddenStates().settle(each.values) for each in seen[1::2]]
    nulls = {q.name: q.null(n_tokens, 64) for q in HiddenStates.quantities if q.null}
    for name, null in nulls.items():
        ratios = np.array([values[name].item() for values in found]) / null
        if name == "participation_ratio":
            ratios = 1 / ratios  # Its null is the harmonic mean.
        # The limit of large matrices is 0.2 % too large here.
        bias = 0.003 if name == "effective_rank" else 0
        error = ratios.std() / len(ratios) ** 0.5
        assert error < 0.01, name  # sharp enough to mean something
        assert ratios.mean() == pytest.approx(1, abs=4 * error + bias), name
