"""Are the values of every step and of the turns the exact ones, and does the certificate hold?

    python benchmarks/tiers.py --gamma 0.5 1.0

Trains the model of configs/anchor.yaml, a matrix in turn at each step, and compares every
value they record, of every matrix and step, with a float64 computation of all matrices at every
step.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings

import lightning
import numpy as np
import pandas
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gamma import LanguageModel, OptimizerConfig, TransformerConfig, neurons, trajectory
from lit_gamma.callbacks import Condensation, EffectiveRank, WeightNorms
from lit_gamma.data import AnchorComposition


class Reference(lightning.Callback):
    """Everything in float64, at every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def on_train_start(self, trainer, pl_module):
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        for matrix in neurons(pl_module):
            w = matrix.weight.double()
            gram = w @ w.T if w.shape[0] < w.shape[1] else w.T @ w
            s = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
            p = s / s.sum()
            unit = w / w.norm(dim=1, keepdim=True)
            cosines = unit @ unit.T
            pairs = len(w) * (len(w) - 1)
            self.rows.append(
                {
                    "step": trainer.global_step,
                    "matrix": matrix.name,
                    "mean_squared_cosine": ((cosines**2).sum() - len(w)).item() / pairs,
                    "mean_absolute_cosine": (cosines.abs().sum() - len(w)).item() / pairs,
                    "effective_rank": torch.special.entr(p).sum().exp().item(),
                    "participation_ratio": ((s**2).sum() ** 2 / (s**4).sum()).item(),
                    "stable_rank": ((s**2).sum() / s[-1] ** 2).item(),
                    "frobenius_norm": (s**2).sum().sqrt().item(),
                    "max_row_norm": w.norm(dim=1).max().item(),
                    "exact_spectral_norm": s[-1].item(),
                }
            )


def study(gamma: float, steps: int) -> None:
    lightning.seed_everything(1, verbose=False)
    reference = Reference()
    shape = TransformerConfig(110, 9, 2, 1, 128, gate="none", position="learned")
    module = LanguageModel(shape, gamma, optimizer=OptimizerConfig(warmup_steps=400))
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=steps,
            gradient_clip_val=1.0,
            logger=TensorBoardLogger(folder),
            callbacks=[
                Condensation(matrices_per_step=1.0),
                EffectiveRank(matrices_per_step=1.0),
                WeightNorms(),
                reference,
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        trainer.fit(module, AnchorComposition(n_train=384_000, batch_size=256))
        tables = trajectory.load(trainer.log_dir)
    exact = pandas.DataFrame(reference.rows)
    for name, table in tables.items():
        both = table.merge(exact, on=["step", "matrix"], suffixes=("", "_exact"))
        assert len(both) == len(table)
        for column in both.filter(like="_exact"):
            quantity = column.removesuffix("_exact")
            error = (both[quantity] / both[column] - 1).abs().max()
            print(f"| {gamma} | {name} | {quantity} | {len(both)} | {error:.1e} |", flush=True)
        if name == "weight_norms":
            low, sigma = both["spectral_norm"], both["exact_spectral_norm"]
            outside = ((low > sigma) | (sigma > low + both["spectral_norm_error"])).sum()
            below, bound = 1 - low / sigma, both["spectral_norm_error"] / sigma
            print(
                f"γ {gamma}: spectral norm outside its certificate {outside} of {len(both)} times; "
                f"too small by {below.mean():.1e} on average, {below.max():.1e} at most; "
                f"certificate {np.median(bound):.1e} in the median, {bound.max():.1e} at most"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gamma", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_flush_denormal(True)
    print("| γ | table | quantity | values | largest relative error |\n|---|---|---|---|---|")
    for gamma in args.gamma:
        study(gamma, args.steps)


if __name__ == "__main__":
    main()
