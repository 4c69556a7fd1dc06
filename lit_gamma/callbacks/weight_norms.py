"""Weight norms: how large is a matrix, how fast does it change, where do its neurons point?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma import metrics
from lit_gamma.callbacks.rows import Rows, add_over_ranks, in_own_slot, rows_of
from lit_gamma.callbacks.schedule import Schedule
from lit_gamma.callbacks.side_stream import side_stream
from lit_gamma.callbacks.weights import WeightTrajectory, weight_groups

BLOCK_SIZE = 8
"""Vectors that follow the leading singular directions of each matrix."""


class WeightNorms(WeightTrajectory):
    """Records what is cheap to know of every weight matrix, from a few sums over its rows.

    The spectral norm comes from one step of a warm-started block power iteration, exact at the
    first step, with its own certificate (see :mod:`lit_gamma.metrics.subspace`): the largest
    singular value lies between ``spectral_norm`` and ``spectral_norm + spectral_norm_error``. Under
    FSDP2 every rank sums over its own rows, and one all_reduce adds the sums of all matrices.

    Logged, as ``weight_norms/<quantity>/<matrix>``; n x d is the matrix's shape:

    =================== ====================================================== ================
    quantity            meaning                                                at initialization
    =================== ====================================================== ================
    frobenius_norm      ‖W‖_F                                                  d_in^(-γ) √(nd)
    rms                 root mean square of the entries                        d_in^(-γ)
    max_row_norm        norm of the largest neuron
    spectral_norm       largest singular value, from below                     d_in^(-γ) (√n + √d)
    spectral_norm_error certificate of the spectral norm                       ≈ 0
    implied_gamma       -ln(rms) / ln(d_in): the γ whose rule gives this rms   γ
    mean_cosine         mean cos between distinct rows; -1 .. 1. It misses     0
                        condensation onto v and -v, see :class:`Condensation`
    update_ratio        ‖W - W'‖_F / ‖W'‖_F, W' the weights of the recorded
                        step before; NaN at the first
    =================== ====================================================== ================

    Args:
        schedule: The steps to record.
        overhead: See :class:`TrajectoryCallback`.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "frobenius_norm": "Frobenius norm; >= 0",
        "rms": "root mean square of the entries; >= 0; d_in^-gamma at initialization",
        "max_row_norm": "norm of the largest neuron (row); >= 0",
        "implied_gamma": "-ln(rms) / ln(d_in); gamma at initialization",
        "mean_cosine": "mean cos between distinct rows; -1..1; null 0",
        "update_ratio": "norm of the change since the recorded step before, over the norm then",
        "spectral_norm": "largest singular value, estimated from below; >= 0",
        "spectral_norm_error": "the largest singular value is at most spectral_norm + this",
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "implied γ": ["implied_gamma"],
        "update ratio": ["update_ratio"],
        "spectral norm": ["spectral_norm"],
    }

    def __init__(self, schedule: Schedule | None = None, overhead: float | None = None) -> None:
        super().__init__(schedule, overhead, matrices_per_step=0)
        self._previous: dict[int, tuple[Tensor, Tensor]] = {}
        self._blocks: dict[int, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record; after a resume the checkpoint's weights are the ones before."""
        if trainer.global_step == 0 or not self._blocks:
            for group in weight_groups(trainer, pl_module):
                blocks = metrics.leading_block(group.weight, BLOCK_SIZE)
                self._blocks.update(zip(group.positions, blocks, strict=True))
        self._blocks = {i: block.to(pl_module.device) for i, block in self._blocks.items()}
        self._previous = {}
        if self._last_step == trainer.global_step > 0:
            self._measure(rows_of(pl_module), self._blocks)
        super().on_train_start(trainer, pl_module)

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records all matrices of the current weights."""
        rows = rows_of(pl_module)
        with side_stream(pl_module.device):
            for group, values, blocks in self._measure(rows, self._blocks):
                self._blocks.update(zip(group.positions, blocks, strict=True))
                self.record(trainer.global_step, values, group.positions)

    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See :class:`TrajectoryCallback`: solves the small eigenproblems."""
        values = dict(measured)
        bounds = metrics.spectral_norm_bounds(values.pop("ritz"), values.pop("residual"))
        return {**values, "spectral_norm": bounds[0], "spectral_norm_error": bounds[1]}

    def state_dict(self) -> dict[str, Any]:
        """Lightning hook: the record, and the blocks of the power iteration."""
        blocks = {position: block.cpu() for position, block in self._blocks.items()}
        return {**super().state_dict(), "blocks": blocks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning hook: see :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        self._blocks = state_dict["blocks"]

    def _measure(
        self, rows: list[Rows], all_blocks: Mapping[int, Tensor]
    ) -> list[tuple[Rows, dict[str, Tensor], Tensor]]:
        """Measures all matrices, and keeps them as the previous ones.

        Returns:
            For each group its quantities, and the blocks of the next step.
        """
        blocks = [torch.stack([all_blocks[i] for i in group.positions]) for group in rows]
        sums = [self._sums(group, block) for group, block in zip(rows, blocks, strict=True)]
        flat = [(s, g.ranks) for g, parts in zip(rows, sums, strict=True) for s in parts]
        add_over_ranks(*zip(*flat, strict=True))
        measured = []
        for group, block, (totals, largest, product) in zip(rows, blocks, sums, strict=True):
            before = self._previous.get(group.positions[0])
            squares = totals[:, 0]
            self._previous[group.positions[0]] = group.values, squares
            values = _quantities(group, block, totals, largest, product)
            nan = torch.full_like(squares, torch.nan)
            values["update_ratio"] = (nan if before is None else totals[:, 1] / before[1]).sqrt()
            measured.append((group, values, metrics.next_block(product[..., :-1])))
        return measured

    def _sums(self, group: Rows, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What adds up over rows.

        Returns:
            For each matrix the squared norm, the squared change and the number of non-zero rows,
            (m, 3); the largest row norm, a slot per rank; WᵀWV and the sum of the rows' directions
            as its last column, (m, d_in, b + 1).
        """
        norms = torch.linalg.vector_norm(group.values, dim=1)
        previous = self._previous.get(group.positions[0])
        change = norms  # Of the first step there is none.
        if previous is not None:
            change = torch.linalg.vector_norm(previous[0].sub_(group.values), dim=1)
        present = norms > 0
        totals = group.sums(torch.stack((norms.square(), change.square(), present), dim=1))
        inverse = torch.where(present, 1 / norms, 0)
        products = []
        for run in group.runs:
            weight = group.stacked(group.values, run)
            to_neurons = torch.cat(
                (weight @ block[run.matrices], group.stacked(inverse, run).unsqueeze(2)), dim=2
            )
            products.append(weight.mT @ to_neurons)
        largest = in_own_slot(group.maxima(norms), group.ranks)
        return totals, largest, torch.cat(products)


def _quantities(
    group: Rows, block: Tensor, totals: Tensor, largest: Tensor, product: Tensor
) -> dict[str, Tensor]:
    squares, _, present = totals.unbind(1)
    n, d_in = torch.tensor(group.n_neurons), group.values.shape[1]
    ritz, residual = metrics.ritz_matrix(block, product[..., :-1])
    rms = (squares / (n * d_in).to(squares)).sqrt()
    direction = product[..., -1].square().sum(-1)
    return {
        "frobenius_norm": squares.sqrt(),
        "rms": rms,
        "max_row_norm": largest.amax(1),
        "implied_gamma": -rms.log() / (math.log(d_in) if d_in > 1 else math.nan),
        "mean_cosine": (direction - present) / (present * (present - 1)),
        "ritz": ritz,
        "residual": residual,
    }
