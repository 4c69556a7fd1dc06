"""The optimizer's settings and the course of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from lit_gamma.errors import InputError

Schedule = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a decay to the end of training.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay λ on matrices; norm scales and biases have none.
        betas: AdamW's β₁ and β₂.
        warmup_steps: Optimizer steps of linear warm-up.
        final_lr_ratio: Learning rate at the last step, as a share of ``lr``.
        schedule: ``cosine`` from the warm-up to the end, or ``wsd`` (warm-up, stable, decay; arXiv
            2404.06395): constant, then linear over the last ``decay_fraction`` of the steps.
        decay_fraction: Share of all steps in which ``wsd`` decays.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 250
    final_lr_ratio: float = 0.1
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"optimizer.lr must be positive, got {self.lr}")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(
                f"optimizer.weight_decay must be finite and not negative, got {self.weight_decay}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps must not be negative: {self.warmup_steps}")
        if not (math.isfinite(self.final_lr_ratio) and self.final_lr_ratio >= 0):
            raise InputError(
                f"optimizer.final_lr_ratio must not be negative, got {self.final_lr_ratio}"
            )
        if self.schedule not in get_args(Schedule):
            known = ", ".join(get_args(Schedule))
            raise InputError(f"optimizer.schedule must be one of {known}, got {self.schedule!r}")
        if not 0 < self.decay_fraction <= 1:
            raise InputError(
                f"optimizer.decay_fraction must lie between 0 and 1, got {self.decay_fraction}"
            )

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Share of ``lr`` to use for the optimizer step that follows ``step`` others."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "wsd":
            decaying = max(1.0, self.decay_fraction * total_steps)
            remaining = min(1.0, max(0, total_steps - step) / decaying)
        else:
            progress = (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps)
            remaining = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * remaining
