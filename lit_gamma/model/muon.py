"""Muon for the matrices of the blocks and AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lit_gamma.errors import InputError
from lit_gamma.model.optimizer import OptimizerConfig


class MuonAndAdamW(Optimizer):
    """Muon (Jordan et al. 2024) and AdamW, with one state and one list of groups.

    Muon orthogonalizes the momentum of a matrix; the update is scaled to the root mean square that
    AdamW's has (arXiv 2502.16982), so that both take the same learning rate and weight decay.

    Args:
        hidden: The groups of matrices that Muon trains.
        rest: The groups that AdamW trains.
        lr: Learning rate of both.
        betas: AdamW's β₁ and β₂; Muon's momentum is 0.95.
        fused: Whether AdamW takes its fused step.

    Raises:
        InputError: This torch has no Muon.
    """

    def __init__(
        self,
        hidden: list[dict[str, Any]],
        rest: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        fused: bool,
    ) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise InputError(f"optimizer.name muon needs torch 2.9, not {torch.__version__}")
        self._parts: tuple[Optimizer, ...] = (
            torch.optim.Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw"),
            AdamW(rest, lr=lr, betas=betas, fused=fused),
        )
        self._n_hidden = len(hidden)
        groups = [group for part in self._parts for group in part.param_groups]
        super().__init__(groups, {"lr": lr})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        n = self._n_hidden
        groups = (self.param_groups[:n], self.param_groups[n:])
        for part, of_part in zip(self._parts, groups, strict=True):
            part.param_groups, part.state = of_part, self.state
            type(part).step.__wrapped__(part)  # type: ignore[attr-defined]  # No hooks of its own.
        return loss


def optimizer_of(module: nn.Module, config: OptimizerConfig, fused: bool) -> Optimizer:
    """The optimizer of a module's parameters, with weight decay on matrices only.

    Args:
        module: The module; Muon takes the matrices under a ``blocks``.
        config: Which one, and its settings.
        fused: Whether AdamW takes its fused step.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    muon = config.name == "muon"
    hidden = [p for name, p in named if muon and p.ndim == 2 and "blocks" in name.split(".")]
    taken = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in taken]
    decay = {"weight_decay": config.weight_decay, "peak_weight_decay": config.weight_decay}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], **decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if hidden:
        of_muon = [{"params": hidden, **decay}]
        return MuonAndAdamW(of_muon, groups, config.lr, config.betas, fused)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
