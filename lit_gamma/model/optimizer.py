"""The optimizer's settings and the course of its learning rate and weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from lit_gamma.errors import InputError

Schedule = Literal["cosine", "wsd"]
Name = Literal["adamw", "muon"]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, or Muon, with linear warm-up and a decay to the end of training.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay λ on matrices; norm scales and biases have none.
        betas: AdamW's β₁ and β₂.
        warmup_steps: Optimizer steps of linear warm-up.
        final_lr_ratio: Learning rate at the last step, as a share of ``lr``.
        schedule: ``cosine`` from the warm-up to the end, or ``wsd`` (warm-up, stable, decay; arXiv
            2404.06395): constant, then linear over the last ``decay_fraction`` of the steps.
        decay_fraction: Share of all steps in which ``wsd`` decays.
        weight_decay_window: Start and end, as shares of all steps, of the part of training that
            has ``weight_decay`` (arXiv 2605.04396); all of it if None.
        weight_decay_outside: Weight decay before and after that window.
        name: ``adamw``, or ``muon`` for the matrices of the blocks and AdamW for the rest.
    """

    lr: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 250
    final_lr_ratio: float = 0.1
    schedule: Schedule = "cosine"
    decay_fraction: float = 0.2
    weight_decay_window: tuple[float, float] | None = None
    weight_decay_outside: float = 0.0
    name: Name = "adamw"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"optimizer.lr must be positive, got {self.lr}")
        for name in ("weight_decay", "weight_decay_outside"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"optimizer.{name} must be finite and not negative, got {value}")
        window = self.weight_decay_window
        if window is None and self.weight_decay_outside:
            raise InputError(
                f"optimizer.weight_decay_outside is {self.weight_decay_outside}, but there is no "
                "window: set optimizer.weight_decay_window, or leave it 0"
            )
        if window is not None and (len(window) != 2 or not 0 <= window[0] < window[1] <= 1):
            raise InputError(
                f"optimizer.weight_decay_window must be a start and a later end in 0 .. 1, "
                f"got {window}"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas}")
        if self.warmup_steps < 0:
            raise InputError(f"optimizer.warmup_steps must not be negative: {self.warmup_steps}")
        if not (math.isfinite(self.final_lr_ratio) and self.final_lr_ratio >= 0):
            raise InputError(
                f"optimizer.final_lr_ratio must not be negative, got {self.final_lr_ratio}"
            )
        if self.name not in get_args(Name):
            raise InputError(f"optimizer.name must be adamw or muon, got {self.name!r}")
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

    def weight_decay_at(self, step: int, total_steps: int) -> float:
        """Weight decay of the optimizer step that follows ``step`` others."""
        if self.weight_decay_window is None:
            return self.weight_decay
        start, end = (round(share * total_steps) for share in self.weight_decay_window)
        return self.weight_decay if start <= step < end else self.weight_decay_outside


class LRAndWeightDecay(LambdaLR):
    """Sets the learning rate of all groups, and the weight decay of matrices, for the next step.

    Args:
        optimizer: The optimizer.
        lr_factor: Share of the learning rate after so many steps.
        weight_decay: Weight decay after so many steps.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_factor: Callable[[int], float],
        weight_decay: Callable[[int], float],
    ) -> None:
        self._weight_decay = weight_decay
        super().__init__(optimizer, lr_factor)

    @override
    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if "peak_weight_decay" in group:
                group["weight_decay"] = self._weight_decay(self.last_epoch)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().state_dict().items() if k != "_weight_decay"}
