"""GammaInit in a LightningModule that knows nothing of lit-gamma: when it draws, and what."""

from __future__ import annotations

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lit_gamma import InputError, gamma_init_, trajectory
from lit_gamma.callbacks import Condensation, EffectiveRank, GammaInit, TokenLoss, WeightNorms


class Plain(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.Linear(24, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Start(lightning.Callback):
    """Keeps the weights that the first step, and the sanity check before it, start from."""

    weights = None

    def on_sanity_check_start(self, trainer, pl_module):
        self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 12, generator=generator)
    return DataLoader(list(zip(x, x[:, :3].argmax(1), strict=True)), batch_size=8)


def fit(root, *callbacks, module=None, seed=0, ckpt_path=None, **options):
    lightning.seed_everything(seed)
    trainer = lightning.Trainer(
        accelerator="cpu", default_root_dir=root, callbacks=[*callbacks], max_epochs=-1,
        enable_progress_bar=False, enable_model_summary=False,
        **{"max_steps": 3, "enable_checkpointing": False, **options},
    )  # fmt: skip
    module = module or Plain()
    trainer.fit(module, data(), ckpt_path=ckpt_path)
    return trainer, module


def test_a_fresh_fit_starts_from_the_rule_by_the_seed_alone(tmp_path, caplog):
    start, again, other, third = Start(), Start(), Start(), Start()
    init = GammaInit(0.9, {"lm_head": 0.5}, roles={"net.2": "lm_head"})
    with caplog.at_level("INFO"):
        trainer, _ = fit(tmp_path, init, start)
    assert "GammaInit, gamma 0.9" in caplog.text
    torch.rand(3)
    fit(
        tmp_path,
        GammaInit(0.9, {"lm_head": 0.5}, roles={"net.2": "lm_head"}, seed=0),
        again,
        seed=7,
    )
    fit(tmp_path, GammaInit(0.9), other, seed=1)
    fit(tmp_path, third)
    reference = Plain()
    gamma_init_(reference, 0.9, {"lm_head": 0.5}, roles={"net.2": "lm_head"},
                generator=torch.Generator().manual_seed(0))  # fmt: skip
    for name, p in reference.named_parameters():
        assert torch.equal(start.weights[name], p), name
        assert torch.equal(again.weights[name], p), name
    assert not torch.equal(start.weights["net.0.weight"], other.weights["net.0.weight"])
    assert third.weights["net.0.weight"].std() > 1.3 * start.weights["net.0.weight"].std()
    assert [row.gamma for row in init.audit] == [0.9, 0.5]
    events = EventAccumulator(trainer.log_dir)
    events.Reload()
    (text,) = events.Tensors("gamma_init/audit/text_summary")
    assert str(init.audit).encode() in text.tensor_proto.string_val[0]


def test_training_that_goes_on_is_left_alone(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer, module = fit(tmp_path, GammaInit(), keep, enable_checkpointing=True)
    trained = {name: p.detach().clone() for name, p in module.named_parameters()}

    start, init = Start(), GammaInit()
    fit(tmp_path, init, start, ckpt_path=tmp_path / "step=3.ckpt", max_steps=5)
    assert init.audit is None
    assert all(torch.equal(start.weights[name], p) for name, p in trained.items())

    start = Start()
    trainer.callbacks.append(start)
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(module, data())
    assert all(torch.equal(start.weights[name], p) for name, p in trained.items())


def test_what_cannot_be_initialized_is_one_clear_message(tmp_path):
    class Empty(Plain):
        def __init__(self):
            super().__init__()
            self.net.requires_grad_(False)
            self.scale = nn.Parameter(torch.ones(3))

    for options in ({"gamma": -1.0}, {"overrides": {"mpl": 1.0}}):
        with pytest.raises(InputError, match=r"-1\.0|'mpl'"):
            GammaInit(**options)
    with pytest.raises(InputError, match=r"no weight to draw in Empty.*\n.*frozen: net\.0"):
        fit(tmp_path, GammaInit(), module=Empty())
    with pytest.raises(InputError, match="'mlp' has no matrix here"):
        fit(tmp_path, GammaInit(overrides={"mlp": 0.5}))


def test_two_lines_record_the_trajectory_of_a_plain_module(tmp_path):
    trainer, _ = fit(tmp_path, GammaInit(0.8), Condensation(), EffectiveRank(), WeightNorms())
    rows = trajectory.load(trainer.log_dir)["weight_norms"].query("step == 0")
    assert list(rows["matrix"]) == ["net.0", "net.2"]
    assert rows["implied_gamma"].to_list() == pytest.approx([0.8, 0.8], abs=0.06)
    with pytest.raises(InputError, match=r"TokenLoss.*token_loss"):
        fit(tmp_path, TokenLoss())


def test_pretrained_weights_are_left_alone_and_a_fresh_model_of_that_shape_is_not(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(**shape, num_attention_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "hub")

    def start_of(model):
        module, start = Plain(), Start()
        module.backbone = model
        before = model.lm_head.weight.detach().clone()
        fit(tmp_path, GammaInit(1.0), start, module=module, max_steps=1)
        return before, start.weights["backbone.lm_head.weight"]

    with pytest.warns(UserWarning, match="from_pretrained has loaded weights"):
        before, start = start_of(transformers.LlamaForCausalLM.from_pretrained(tmp_path / "hub"))
    assert torch.equal(before, start)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hub")
    before, start = start_of(transformers.AutoModelForCausalLM.from_config(config))
    assert start.std().item() == pytest.approx(1 / 8, rel=0.25)
    assert not torch.equal(before, start)
