"""Weight norms: how large is a matrix, how fast does it change, where do its neurons point?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
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
        self._blocks: dict[int, Tensor] = {}
        self._previous: dict[int, tuple[Tensor, Tensor]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the record; after a resume the checkpoint's weights are the ones before."""
        if trainer.global_step == 0 or not self._blocks:
            for group in weight_groups(trainer, pl_module):
                blocks = metrics.leading_block(group.weight, BLOCK_SIZE)
                self._blocks.update(zip(group.positions, blocks, strict=True))
        self._blocks = {i: block.to(pl_module.device) for i, block in self._blocks.items()}
        self._previous = {}
        if self._last_step == trainer.global_step > 0:
            for rows in rows_of(pl_module):
                self._sums(rows, torch.stack([self._blocks[i] for i in rows.positions]))
        super().on_train_start(trainer, pl_module)

    def take(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records all matrices of the current weights."""
        groups = rows_of(pl_module)
        with side_stream(pl_module.device):
            blocks = [torch.stack([self._blocks[i] for i in g.positions]) for g in groups]
            sums = [self._sums(group, block) for group, block in zip(groups, blocks, strict=True)]
            add_over_ranks(
                [part for parts in sums for part in parts.values()],
                [group.ranks for group, parts in zip(groups, sums, strict=True) for _ in parts],
            )
            spectra = []
            for group, block, parts in zip(groups, blocks, sums, strict=True):
                product = parts.pop("product").mT
                following = metrics.next_block(product[..., :-1])
                self._blocks.update(zip(group.positions, following.unbind(), strict=True))
                spectra.append((block, product))
            positions = [i for group in groups for i in group.positions]
            values = _quantities(groups, sums, spectra)
            self.record(trainer.global_step, values, positions)

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

    def _sums(self, group: Rows, block: Tensor) -> dict[str, Tensor]:
        """What adds up over rows, for the m matrices of a group; keeps them as the previous ones.

        Returns:
            ``totals``: squared norm, squared change, squared norm before and number of non-zero
            rows, (m, 4); ``largest`` row norm, a slot per rank; ``product``: (WᵀWV)ᵀ and below it
            the sum of the rows' directions, (m, b + 1, d_in).
        """
        norms = torch.linalg.vector_norm(group.values, dim=1)
        present = norms > 0
        previous = self._previous.get(group.positions[0])
        change = torch.full_like(norms, torch.nan)
        if previous is not None:
            change = torch.linalg.vector_norm(previous[0].sub_(group.values), dim=1)
        before = change if previous is None else previous[1]
        per_row = (norms.square(), change.square(), before.square(), present)
        self._previous[group.positions[0]] = group.values, norms
        inverse = torch.where(present, 1 / norms, 0)
        products = []
        for run in group.runs:
            weight = group.stacked(group.values, run)
            directions = group.stacked(inverse, run).unsqueeze(2)
            to_neurons = torch.cat((weight @ block[run.matrices], directions), dim=2)
            products.append(to_neurons.mT @ weight)
        return {
            "totals": group.sums(torch.stack(per_row, dim=1)),
            "largest": in_own_slot(group.maxima(norms), group.ranks),
            "product": torch.cat(products),
        }


def _quantities(
    groups: Sequence[Rows],
    sums: Sequence[Mapping[str, Tensor]],
    spectra: Sequence[tuple[Tensor, Tensor]],
) -> dict[str, Tensor]:
    """All quantities of all matrices, in the order of the groups; see :class:`WeightNorms`."""
    squares, change, before, present = torch.cat([s["totals"] for s in sums]).unbind(1)
    shapes = tuple((n, group.values.shape[1]) for group in groups for n in group.n_neurons)
    n_entries, log_d = _constants(shapes, squares.device)
    rms = (squares / n_entries).sqrt()
    directions = torch.cat([product[..., -1].square().sum(-1) for _, product in spectra])
    ritz = [metrics.ritz_matrix(block, product[..., :-1]) for block, product in spectra]
    size = max(matrix.shape[-1] for matrix, _ in ritz)  # Zeros below do not change the largest.
    padded = [F.pad(m, (0, size - m.shape[-1], 0, size - m.shape[-1])) for m, _ in ritz]
    return {
        "frobenius_norm": squares.sqrt(),
        "rms": rms,
        "max_row_norm": torch.cat([s["largest"].amax(1) for s in sums]),
        "implied_gamma": -rms.log() / log_d,
        "mean_cosine": (directions - present) / (present * (present - 1)),
        "update_ratio": (change / before).sqrt(),
        "ritz": torch.cat(padded),
        "residual": torch.cat([residual for _, residual in ritz]),
    }


@cache
def _constants(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Number of entries and ln(d_in) of each matrix, copied to the device once."""
    logs = [math.log(d) if d > 1 else math.nan for _, d in shapes]
    return torch.tensor([float(n * d) for n, d in shapes], device=device), torch.tensor(
        logs, device=device
    )
