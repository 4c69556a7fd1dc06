"""A LightningModule of one's own, drawn by γ and recorded; interrupted and resumed at step 20.

python examples/lightning_module.py
"""

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_gamma.callbacks import Condensation, GammaInit, Schedule, TokenLoss, WeightNorms


class LanguageModel(L.LightningModule):
    """A small Llama; nothing in it knows of lit-gamma."""

    def __init__(self):
        super().__init__()
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        self.model = LlamaForCausalLM(
            LlamaConfig(vocab_size=100, num_attention_heads=4, pad_token_id=None, **shape)
        )

    def training_step(self, batch, batch_idx):
        out = self.model(input_ids=batch, labels=batch)
        return {"loss": out.loss, "logits": out.logits.detach()}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0, fused=True)


def token_loss(outputs, batch):
    """The loss of each token in nats, NaN where there is no label."""
    return F.cross_entropy(
        outputs["logits"][:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="none"
    )


def train(run_dir, steps, checkpoint=None):
    """Trains up to a step and returns the folder of the record."""
    recorded = [
        Condensation(Schedule(every=5)),
        WeightNorms(),
        TokenLoss(token_loss=token_loss),
    ]
    keep = ModelCheckpoint(
        f"{run_dir}/checkpoints", "{step}", every_n_train_steps=10, save_top_k=-1
    )
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        accumulate_grad_batches=2,
        default_root_dir=run_dir,
        callbacks=[GammaInit(1.0, seed=1), *recorded, keep],
    )
    ids = torch.randint(100, (80, 16), generator=torch.Generator().manual_seed(2))
    trainer.fit(LanguageModel(), DataLoader(ids, batch_size=4), ckpt_path=checkpoint)
    return trainer.log_dir


if __name__ == "__main__":
    train("runs/lightning", 20)
    train("runs/lightning", 30, "runs/lightning/checkpoints/step=20.ckpt")
