"""Small runs of the package's own model and of a careless one."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torchmetrics import MeanMetric

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig
from lit_gamma.data import AnchorComposition

ROOT = Path(__file__).parents[2]

TINY = [
    "--config=configs/anchor.yaml",
    "--model.transformer.d_model=16",
    "--data.n_train=512",
    "--data.n_val=64",
    "--data.batch_size=16",
    "--trainer.val_check_interval=10",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
]
"""The default experiment, small: 32 batches an epoch."""


class Snapshots(lightning.Callback):
    """Keeps the weights of every step."""

    def __init__(self):
        self.weights = {}

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        state = pl_module.state_dict()
        self.weights[trainer.global_step] = {k: v.clone() for k, v in state.items()}


def tiny_module(
    gamma: float | None = 0.8, lr: float = 0.01, init_std: float | None = None, **transformer
) -> LanguageModel:
    shape = {"vocab_size": 110, "context_length": 9, "d_model": 16, **transformer}
    optimizer = OptimizerConfig(lr=lr, warmup_steps=2)
    return LanguageModel(TransformerConfig(**shape), gamma, optimizer=optimizer, init_std=init_std)


def fit(
    root: Path,
    *callbacks,
    seed: int = 0,
    version=None,
    ckpt_path=None,
    module=None,
    data=None,
    **trainer,
):
    """Fits the tiny model on the anchor task, or another, and returns the trainer."""
    lightning.seed_everything(seed)
    made = lightning.Trainer(
        accelerator="cpu",
        logger=TensorBoardLogger(root, name="", version=version, default_hp_metric=False),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        **{"limit_val_batches": 0, "enable_checkpointing": False, **trainer},
    )
    data = data or AnchorComposition(n_train=160, n_val=32, batch_size=16)
    made.fit(module or tiny_module(), data, ckpt_path=ckpt_path)
    return made


class Noisy(lightning.LightningModule):
    """All that a careless probe would disturb: randomness, buffers, metrics, logs."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(110, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.3, batch_first=True)
        self.encoder = torch.compile(nn.TransformerEncoder(layer, 1), backend="eager")
        self.batch_norm = nn.BatchNorm1d(9)
        self.frozen = nn.Dropout(0.5).eval()
        self.head = nn.Linear(16, 110)
        self.mean = MeanMetric()
        self.register_buffer("calls", torch.zeros(()))
        self.modes = []

    def training_step(self, batch, batch_idx):
        x = self.frozen(self.batch_norm(self.encoder(self.embedding(batch["input_ids"]))))
        x = x + 0.1 * torch.randn_like(x) * np.random.rand()
        self.calls += 1
        labels = batch["labels"][:, -1]
        loss = nn.functional.cross_entropy(self.head(x)[:, -1], labels)
        self.mean.update(loss.detach())
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.modes.append((self.training, self.frozen.training))
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)
