"""Weights & Biases beside the record: its curves, the record's folder, and the overview at the end.

pip install wandb && WANDB_MODE=offline python examples/wandb_logger.py
"""

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig, trajectory
from lit_gamma.callbacks import Condensation, EffectiveRank, TokenLoss, WeightNorms
from lit_gamma.data import AnchorComposition


def train(root, steps, gamma=0.8):
    """Trains on the anchor task and returns the folder of the record."""
    # The first logger names the folder of the record.
    record = TensorBoardLogger(root, name="anchor", version=f"gamma{gamma}-seed1")
    board = WandbLogger(project="lit-gamma", name=f"gamma{gamma}-seed1", save_dir=root)
    board.log_hyperparams({"record": record.log_dir})
    shape = TransformerConfig(vocab_size=110, context_length=9, d_model=32, n_layers=2)
    model = LanguageModel(shape, gamma, optimizer=OptimizerConfig(warmup_steps=20))
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        val_check_interval=50,
        log_every_n_steps=10,
        enable_checkpointing=False,
        logger=[record, board],
        callbacks=[Condensation(), EffectiveRank(), WeightNorms(), TokenLoss()],
    )
    trainer.fit(model, AnchorComposition(n_train=12800, n_val=200, batch_size=128))
    board.log_image("overview", [trajectory.plot(record.log_dir)])
    board.experiment.finish()
    return record.log_dir


if __name__ == "__main__":
    L.seed_everything(1)
    train("runs", 200)
