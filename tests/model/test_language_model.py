"""Loss, schedule, optimizer and validation metrics against float64 references."""

import math
from functools import partialmethod

import numpy as np
import pytest
import torch
from helpers.runs import Snapshots, fit, tiny_module
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lit_gamma import InputError, LanguageModel, OptimizerConfig, TransformerConfig
from lit_gamma.data import AnchorComposition

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def model(optimizer=None, **transformer) -> LanguageModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 110, "context_length": 9, "n_layers": 1, "d_model": 32, **transformer}
    return LanguageModel(TransformerConfig(**shape), 0.5, optimizer=optimizer or OptimizerConfig())


def reference_losses(logits, labels):
    """-ln softmax at the label, in float64; NaN where the label is -100."""
    z = logits.detach().double().numpy()
    z = z - z.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(z, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return np.where(labels == -100, np.nan, np.log(np.exp(z).sum(axis=-1)) - chosen)


def test_the_loss_is_the_mean_over_labels_that_are_not_ignored():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(110, (4, 9), generator=generator)
    labels = torch.randint(110, (4, 9), generator=generator)
    labels[torch.rand(4, 9, generator=generator) < 0.4] = -100
    labels[2] = -100  # a row without any label
    labels[3, 0] = 0
    lm = model()
    lm.log = lambda *args, **kwargs: None
    out = lm.training_step({"input_ids": input_ids, "labels": labels}, 0)
    expected = reference_losses(lm(input_ids), labels.numpy())

    assert out["loss"].item() == pytest.approx(np.nanmean(expected), rel=1e-6)
    assert out["token_loss"].shape == (4, 9)
    np.testing.assert_allclose(out["token_loss"].numpy(), expected, rtol=1e-5)  # NaN where NaN
    assert not out["token_loss"].requires_grad
    out["loss"].backward()
    assert all(p.grad.isfinite().all() for p in lm.parameters())
    assert lm.transformer.lm_head.weight.grad.any()


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 1 / 100),  # the first of 100 steps of warm-up
        (49, 0.5),
        (99, 1.0),
        (100, 1.0),
        (350, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (600, 0.6),  # half of it
        (1100, 0.2),
        (2000, 0.2),  # and no rise after the end
    ],
)
def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine(step, factor):
    config = OptimizerConfig(warmup_steps=100, final_lr_ratio=0.2)
    assert config.lr_factor(step, 1100) == pytest.approx(factor, rel=1e-12)


def test_wsd_is_constant_until_it_decays_linearly():
    config = OptimizerConfig(
        warmup_steps=100, final_lr_ratio=0.2, schedule="wsd", decay_fraction=0.1
    )
    factors = [config.lr_factor(step, 1000) for step in (49, 99, 100, 900, 950, 975, 1000, 2000)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 0.6, 0.4, 0.2, 0.2], rel=1e-12)


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert OptimizerConfig(warmup_steps=0).lr_factor(0, 10) == 1.0
    assert OptimizerConfig(warmup_steps=10).lr_factor(9, 10) == 1.0  # warm-up to the very end


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": 0.0}, r"lr.*0\.0"),
        ({"lr": math.nan}, "lr.*nan"),
        ({"warmup_steps": -1}, "warmup_steps.*-1"),
        ({"final_lr_ratio": -0.5}, r"final_lr_ratio.*-0\.5"),
        ({"schedule": "linear"}, "schedule.*'linear'"),
        ({"decay_fraction": 0.0}, r"decay_fraction.*0\.0"),
        ({"weight_decay_outside": -1.0}, r"weight_decay_outside.*-1\.0"),
        ({"weight_decay_outside": 0.1}, r"weight_decay_outside is 0\.1.*no window"),
        ({"weight_decay_window": (0.5, 0.5)}, r"weight_decay_window.*\(0\.5, 0\.5\)"),
        ({"weight_decay_window": (0.5, 1.5)}, r"weight_decay_window.*\(0\.5, 1\.5\)"),
        ({"weight_decay_window": (0.5,)}, r"weight_decay_window.*\(0\.5,\)"),
    ],
)
def test_an_impossible_optimizer_is_refused_by_its_values(values, message):
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**values)


def test_training_lowers_the_loss_by_the_schedule_with_decay_on_the_matrices_alone():
    optimizer = OptimizerConfig(lr=3e-3, weight_decay=0.3, betas=(0.8, 0.99), warmup_steps=5)
    lm = model(optimizer, bias=True, position="learned", tie_embeddings=True)
    trainer = Trainer(**QUIET, max_steps=60)
    trainer.fit(lm, AnchorComposition(n_train=60, n_val=2, batch_size=20))  # learnt by heart
    assert trainer.callback_metrics["train/loss"] < 0.5 * math.log(110)

    (adamw,) = trainer.optimizers
    decayed, free = adamw.param_groups
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.99)}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    name_of = {id(p): name for name, p in lm.named_parameters()}
    names = [[name_of.pop(id(p)) for p in group["params"]] for group in (decayed, free)]
    assert not name_of  # every parameter once
    assert all(name.endswith(("norm.weight", "bias")) for name in names[1])
    assert not any(name.endswith(("norm.weight", "bias")) for name in names[0])
    assert decayed["lr"] == free["lr"] == pytest.approx(3e-3 * optimizer.lr_factor(60, 60))


def test_weight_decay_has_a_window_that_is_recorded_and_goes_on_exactly(tmp_path):
    """The rows of tokens that never come have no gradient: decay alone shrinks them."""
    settings = {"lr": 0.1, "warmup_steps": 3, "weight_decay": 0.5, "weight_decay_outside": 0.01}
    config = OptimizerConfig(**settings, weight_decay_window=(0.25, 0.7))
    expected = [0.01] * 2 + [0.5] * 5 + [0.01] * 3  # round(2.5) = 2, and 7

    def run(folder, **options):
        seen = Snapshots()
        every = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
        monitor = LearningRateMonitor(log_weight_decay=True)
        options |= {"max_steps": 10, "enable_checkpointing": True, "log_every_n_steps": 1}
        trainer = fit(folder, seen, every, monitor, module=model(config), version="tb", **options)
        return seen.weights, trainer

    weights, trainer = run(tmp_path / "whole")
    rows = [weights[step]["transformer.embedding.weight"][5:20].double() for step in range(11)]
    for step, decay in enumerate(expected):
        shrunk = rows[step] * (1 - 0.1 * config.lr_factor(step, 10) * decay)
        torch.testing.assert_close(rows[step + 1], shrunk, rtol=3e-7, atol=0)
    events = EventAccumulator(trainer.log_dir).Reload()
    recorded = events.Scalars("lr-AdamW/pg1-weight_decay")
    assert [scalar.value for scalar in recorded] == pytest.approx(expected)
    for step in (1, 2, 4, 7):
        resumed, _ = run(tmp_path / str(step), ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert all(torch.equal(p, resumed[10][name]) for name, p in weights[10].items())


def test_the_first_step_moves_by_the_first_rate_of_the_warm_up():
    """Adam's first step is the learning rate times the gradient's sign."""
    lm = model(OptimizerConfig(lr=0.5, weight_decay=0.0, warmup_steps=10))
    before = lm.transformer.lm_head.weight.detach().clone()
    data = AnchorComposition(n_train=100, n_val=1, batch_size=100)
    Trainer(**QUIET, max_steps=1, limit_val_batches=0).fit(lm, data)
    moved = (lm.transformer.lm_head.weight.detach() - before).abs()
    assert moved.max().item() == pytest.approx(0.05, rel=1e-3)


class KeptGradients(Callback):
    """Norms of the whole gradient, as the optimizer gets it."""

    def __init__(self):
        self.norms = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.norms += [torch.nn.utils.get_total_norm(gradients).item()] if gradients else []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_every_precision_trains_with_the_gradient_clipped(precision):
    lm = model(OptimizerConfig(lr=3e-3, warmup_steps=5), tie_embeddings=True)
    seen = KeptGradients()
    trainer = Trainer(
        **QUIET, max_steps=60, precision=precision, gradient_clip_val=0.1, callbacks=[seen]
    )
    trainer.fit(lm, AnchorComposition(n_train=60, n_val=2, batch_size=20))
    assert trainer.callback_metrics["train/loss"] < 0.6 * math.log(110)
    assert max(seen.norms) == pytest.approx(0.1, rel=0.01)
    assert {p.dtype for p in lm.parameters()} == {
        torch.bfloat16 if precision == "bf16-true" else torch.float32
    }


@pytest.mark.slow
def test_a_compiled_model_is_the_same_with_the_same_names(monkeypatch):
    traced = partialmethod(nn.Module.compile, backend="aot_eager")  # needs no C++ compiler
    monkeypatch.setattr(nn.Module, "compile", traced)
    lm = model()
    names, ids = list(lm.state_dict()), torch.randint(110, (2, 9))
    expected = lm(ids)
    lm.compile_transformer = True
    lm.configure_model()
    calls = []
    lm.transformer._compiled_call_impl, compiled = (
        lambda *args: (calls.append(args), compiled(*args))[1],
        lm.transformer._compiled_call_impl,
    )
    torch.testing.assert_close(lm(ids), expected)
    assert len(calls) == 1
    assert list(lm.state_dict()) == names


@pytest.mark.parametrize("stage", ["val", "test"])
def test_validation_metrics_equal_a_computation_by_hand(stage):
    lm = model()
    data = AnchorComposition(n_train=50, n_val=300, batch_size=50)
    trainer = Trainer(**QUIET, num_sanity_val_steps=0)
    run = trainer.validate if stage == "val" else trainer.test
    run(lm, data, verbose=False)
    first = dict(trainer.callback_metrics)
    expected = {}
    for name, sequences in data.val_sets.items():
        batch = sequences[torch.arange(300)]
        with torch.no_grad():
            logits = lm(batch["input_ids"])
        loss = np.nanmean(reference_losses(logits, batch["labels"].numpy()))
        accuracy = np.mean(logits[:, -1].numpy().argmax(axis=1) == sequences.answers.numpy())
        expected |= {
            f"{stage}/{name}/loss": loss,
            f"{stage}/{name}/perplexity": math.exp(loss),
            f"{stage}/{name}/accuracy": accuracy,
        }
    assert {k: v.item() for k, v in first.items()} == pytest.approx(expected, rel=1e-5)
    run(lm, data, verbose=False)  # nothing is left over from the first time
    assert trainer.callback_metrics == first


def test_validation_may_come_before_and_after_training():
    lm = model(OptimizerConfig(lr=0.01, warmup_steps=0))
    data = AnchorComposition(n_train=50, n_val=20, batch_size=50)
    Trainer(**QUIET).validate(lm, data, verbose=False)
    trainer = Trainer(**QUIET, max_steps=1)
    trainer.fit(lm, data)
    trained = {name: v for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
    trainer = Trainer(**QUIET)
    trainer.validate(lm, data, verbose=False)
    assert trainer.callback_metrics == trained
    trainer.test(lm, DataLoader([data.train_set[torch.arange(3)]], batch_size=None), verbose=False)
    assert {name.rpartition("/")[0] for name in trainer.callback_metrics} == {"test/0"}


def test_metrics_of_several_batches_weigh_every_label_alike():
    lm = model(vocab_size=7)
    generator = torch.Generator().manual_seed(2)
    input_ids = torch.randint(7, (2, 8, 9), generator=generator)
    labels = torch.randint(7, (2, 8, 9), generator=generator)
    labels[0, :, 1:] = -100  # 8 labels in one batch, 72 in the other
    batches = [{"input_ids": i, "labels": t} for i, t in zip(input_ids, labels, strict=True)]
    trainer = Trainer(**QUIET)
    trainer.validate(lm, DataLoader(batches, batch_size=None), verbose=False)
    logits = lm(input_ids.flatten(0, 1)).detach()
    labels = labels.flatten(0, 1).numpy()
    correct = (logits.argmax(-1).numpy() == labels)[labels != -100]
    loss = np.nanmean(reference_losses(logits, labels))
    assert trainer.callback_metrics["val/0/loss"].item() == pytest.approx(loss, rel=1e-5)
    assert trainer.callback_metrics["val/0/accuracy"].item() == pytest.approx(correct.mean())


def test_a_token_of_vanishing_probability_has_a_finite_loss():
    """A probability below 1e-45 is zero in float32; its logarithm is not."""
    lm = model()
    with torch.no_grad():
        lm.transformer.lm_head.weight.mul_(300)
    data = AnchorComposition(n_train=50, n_val=20, batch_size=50)
    trainer = Trainer(**QUIET)
    trainer.validate(lm, data, verbose=False)
    batch = data.val_sets["seen"][torch.arange(20)]
    losses = reference_losses(lm(batch["input_ids"]), batch["labels"].numpy())
    assert np.nanmax(losses) > 110
    value = trainer.callback_metrics["val/seen/loss"].item()
    assert value == pytest.approx(np.nanmean(losses), rel=1e-5)


def test_a_checkpoint_gives_the_same_model_back(tmp_path):
    lm = model(OptimizerConfig(lr=0.01, warmup_steps=3), gate="headwise", d_ff=20)
    data = AnchorComposition(n_train=50, n_val=1, batch_size=50)
    trainer = Trainer(**QUIET, max_steps=1, limit_val_batches=0)
    trainer.fit(lm, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = LanguageModel.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.transformer.config == lm.transformer.config
    assert loaded.optimizer_config == lm.optimizer_config
    input_ids = data.train_set.input_ids
    assert torch.equal(loaded(input_ids), lm(input_ids))


@pytest.mark.parametrize(
    ("gamma", "lr", "message"),
    [
        (0.8, 0.02, r"model\.optimizer\.lr is 0\.02, but the checkpoint was trained with 0\.01"),
        (0.5, 0.01, r"model\.gamma is 0\.5, but the checkpoint was trained with 0\.8"),
        (None, 0.01, r"model\.gamma is None, but the checkpoint was trained with 0\.8"),
    ],
)
def test_settings_that_a_resume_would_not_follow_are_refused(tmp_path, gamma, lr, message):
    first = fit(tmp_path, max_steps=2, enable_checkpointing=True)
    checkpoint = first.checkpoint_callback.best_model_path
    again = {"ckpt_path": checkpoint, "max_steps": 4}
    with pytest.raises(InputError, match=message):
        fit(tmp_path, module=tiny_module(gamma, lr, None if gamma else 0.02), **again)
    assert fit(tmp_path, module=tiny_module(), **again).global_step == 4
