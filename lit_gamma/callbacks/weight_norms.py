"""Weight norms: what is known of every matrix at every step: size, change, condensation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.metrics.gram import ColumnGrams
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.rows import Rows, Stack, add_over_ranks, in_own_slot
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import lend, side_stream
from lit_gamma.recording.weights import gaussian_nulls
from lit_gamma.trajectory.table import Index, Quantity

BLOCK_SIZE = 8
"""Vectors that follow the leading singular directions of each matrix."""


class WeightNorms(TrajectoryCallback):
    """Records what one Gram matrix tells of every weight matrix, see :mod:`lit_gamma.metrics.gram`.

    The headline is the mean squared cosine between neurons over its null: the mean cosine misses
    condensation onto v and -v. Both are NaN of a single neuron, which has no pair. Unlike in
    :class:`Condensation`, all rows of a vocabulary's table are in them. Products are in full
    float32, whatever training uses.

    The spectral norm comes from one step of a warm-started block power iteration, exact at the
    first step, with its own certificate (:mod:`~lit_gamma.metrics.power_iteration`): the largest
    singular value lies between ``spectral_norm`` and ``spectral_norm + spectral_norm_error``. Under
    FSDP2 every rank sums over its own rows, and one all_reduce adds the sums of all matrices: two
    d_in × d_in matrices each.

    Logged as ``2_condensation/mean_squared_cosine_over_null/<role>``, the mean over the matrices of
    a role, and ``4_weight_norms/implied_gamma`` and ``4_weight_norms/update_ratio``, means over all
    matrices; the file has the ``quantities`` below of each. The update ratio is NaN at the first
    recorded step.

    Args:
        schedule: The steps to record.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "mean_squared_cosine",
            "mean cos² between distinct rows",
            range="0..1",
            null=lambda n_neurons, d_in: metrics.null_mean_squared_cosine(d_in),
            null_formula="1 / d",
            chart="cos² ÷ null",
            group="2_condensation",
        ),
        Quantity(
            "participation_ratio",
            "sum(s^2)^2 / sum(s^4), of the singular values s",
            range="1..min(n, d)",
            null=metrics.null_participation_ratio,
            null_formula="(nd + 2) / (n + d + 1)",
        ),
        Quantity("frobenius_norm", "Frobenius norm", range=">= 0"),
        Quantity(
            "rms",
            "root mean square of the entries",
            range=">= 0",
            note="d_in^-gamma at initialization",
        ),
        Quantity("max_row_norm", "norm of the largest neuron (row)", range=">= 0"),
        Quantity(
            "implied_gamma",
            "-ln(rms) / ln(d_in)",
            note="gamma at initialization",
            chart="implied γ, mean",
            joined="mean",
        ),
        Quantity("mean_cosine", "mean cos between distinct rows", range="-1..1", note="null 0"),
        Quantity(
            "update_ratio",
            "norm of the change since the recorded step before, per step, over the norm then",
            chart="update ratio, mean",
            joined="mean",
        ),
        Quantity("spectral_norm", "largest singular value, estimated from below", range=">= 0"),
        Quantity(
            "spectral_norm_error", "the largest singular value is at most spectral_norm + this"
        ),
    )

    section = "4"

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)
        self._loaded: Mapping[str, Any] = {}
        self._blocks: dict[Stack, Tensor] = {}
        self._previous: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._spent: dict[tuple[int, ...], Tensor] = {}

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        return self.run.weights.index()

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        return gaussian_nulls(self.quantities, [m.weight.shape for m in self.run.weights.matrices])

    @override
    def start(self, run: Run) -> None:
        groups = run.weights.rows()
        known = self._first_blocks(groups)
        self._blocks, self._previous, self._spent = {}, {}, {}
        for rows in groups:
            for stack in rows.stacks:
                blocks = torch.stack([known[i] for i in stack.positions])
                self._blocks[stack] = lend(blocks.to(run.device, torch.float32))
            if self.file.last_step == run.step > 0:  # The checkpoint's weights are the ones before.
                copy = rows.copy()
                with side_stream(run.device):
                    self._previous[rows.positions] = copy, torch.linalg.vector_norm(copy, dim=1)
        super().start(run)

    @override
    def take(self) -> None:
        groups = self.run.weights.rows()
        copies = [rows.copy(self._spent.get(rows.positions)) for rows in groups]
        device = self.run.device
        # Many small operations, which are cheaper in inference mode than under no_grad alone.
        with side_stream(device), torch.inference_mode(), metrics.exact_products(device):
            sums = [self._sums(rows, copy) for rows, copy in zip(groups, copies, strict=True)]
            add_over_ranks(
                [part for parts in sums for part in parts.added],
                [rows.ranks for rows, parts in zip(groups, sums, strict=True) for _ in parts.added],
            )
            for rows, parts in zip(groups, sums, strict=True):
                self.file.append(self.run.step, self._measured(rows, parts), rows.positions)

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        squares, change, before, present = measured["totals"].unbind(1)
        cosines, squared_cosines, concentration = measured["gram"].unbind(1)
        n_entries, log_d = measured["shape"].unbind(1)
        rms = (squares / n_entries).sqrt()
        bounds = metrics.spectral_norm_bounds(measured["ritz"], measured["residual"])
        return {
            "mean_squared_cosine": metrics.mean_of_pairs(squared_cosines.clamp(min=0), present),
            "participation_ratio": torch.where(squares == 0, 0, 1 / concentration),
            "mean_cosine": metrics.mean_of_pairs(cosines, present),
            "frobenius_norm": squares.sqrt(),
            "rms": rms,
            "max_row_norm": measured["largest"],
            "implied_gamma": -rms.log() / log_d,
            "update_ratio": (change / before).sqrt(),
            "spectral_norm": bounds[0],
            "spectral_norm_error": bounds[1],
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        blocks: dict[str, dict[int, Tensor]] = {"row_blocks": {}, "column_blocks": {}}
        for stack, of_stack in self._blocks.items():
            with side_stream(of_stack.device):
                on_host = of_stack.cpu()
            blocks[_kind(stack)].update(zip(stack.positions, on_host, strict=True))
        return {**super().state_dict(), **blocks}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict

    def _first_blocks(self, groups: Sequence[Rows]) -> dict[int, Tensor]:
        """The checkpoint's blocks where it has them, of the same side; else exact ones."""
        loaded = self._loaded if self.run.step > 0 else {}
        blocks: dict[int, Tensor] = {}
        for stack in (stack for rows in groups for stack in rows.stacks):
            of_kind = loaded.get(_kind(stack), {})
            blocks |= {i: of_kind[i] for i in stack.positions if i in of_kind}
            missing = [i for i in stack.positions if i not in blocks]
            for group in self.run.weights.groups(self.run.step, missing):
                weight = group.weight if stack.by_columns else group.weight.mT
                exact = metrics.leading_block(weight, BLOCK_SIZE)
                blocks.update(zip(group.positions, exact, strict=True))
        return blocks

    def _sums(self, rows: Rows, values: Tensor) -> _Sums:
        """What adds up over rows, of the m matrices of a group; keeps them as the previous ones."""
        norms = torch.linalg.vector_norm(values, dim=1)
        previous = self._previous.get(rows.positions)
        if previous is None:
            change = before = torch.full_like(norms, torch.nan)
        else:
            change = torch.linalg.vector_norm(previous[0].sub_(values), dim=1)
            change /= self.run.step - self.file.last_step
            self._spent[rows.positions], before = previous
        self._previous[rows.positions] = values, norms
        per_row = torch.stack((norms, change, before, norms.sign()), dim=1).square_()
        weights, of_rows = rows.stacked(values), rows.stacked(norms)
        return _Sums(
            totals=rows.sums(per_row),
            largest=in_own_slot(rows.maxima(norms), rows.ranks),
            rows=list(zip(weights, of_rows, strict=True)),
            grams=[
                metrics.column_grams(weight, norm) if stack.by_columns else None
                for stack, weight, norm in zip(rows.stacks, weights, of_rows, strict=True)
            ],
        )

    def _measured(self, rows: Rows, sums: _Sums) -> dict[str, Tensor]:
        """What :meth:`settle` takes, from the sums over all rows; the blocks go a step on."""
        found = [
            self._of_stack(stack, *of_rows, grams, totals[:, 3])
            for stack, of_rows, grams, totals in zip(
                rows.stacks, sums.rows, sums.grams, rows.by_stack(sums.totals), strict=True
            )
        ]
        return {
            "shape": _shape(rows.n_neurons, rows.d_in, sums.totals.device),
            "totals": sums.totals,
            "largest": sums.largest.amax(1),
            **{name: torch.cat([of_stack[name] for of_stack in found]) for name in found[0]},
        }

    def _of_stack(
        self, stack: Stack, weight: Tensor, norms: Tensor, grams: ColumnGrams | None, n: Tensor
    ) -> dict[str, Tensor]:
        block = self._blocks[stack]
        if grams is None:
            sums = metrics.sums_by_rows(weight, norms, block)
        else:
            sums = metrics.sums_by_columns(grams, n, block)
        ritz, residual = metrics.ritz_matrix(block, sums.product)
        self._blocks[stack] = metrics.next_block(sums.product)
        missing = BLOCK_SIZE - block.shape[1]  # Zeros do not change the largest Ritz value.
        return {
            "gram": torch.stack(sums[:3], dim=1),
            "ritz": F.pad(ritz, (0, missing, 0, missing)) if missing else ritz,
            "residual": residual,
        }


class _Sums(NamedTuple):
    """Of a group of matrices what adds up over their rows, and the rows held here.

    Attributes:
        totals: Squared norm, squared change, squared norm before, rows that are not zero, (m, 4).
        largest: Largest row norm, a slot per rank, (m, ranks).
        rows: For every stack the matrices and the norms of their rows.
        grams: For every stack the Gram matrices of its columns, where these are the smaller side
            or the rows are spread over ranks; else None.
    """

    totals: Tensor
    largest: Tensor
    rows: list[tuple[Tensor, Tensor]]
    grams: list[ColumnGrams | None]

    @property
    def added(self) -> list[Tensor]:
        """What is added up over ranks."""
        return [
            self.totals,
            self.largest,
            *(part for grams in self.grams if grams for part in grams),
        ]


def _kind(stack: Stack) -> str:
    return "column_blocks" if stack.by_columns else "row_blocks"


@cache
def _shape(n_neurons: tuple[int, ...], d_in: int, device: torch.device) -> Tensor:
    """Number of entries and ln(d_in) of each matrix, (m, 2), copied to the device once."""
    log = math.log(d_in) if d_in > 1 else math.nan
    return torch.tensor([[float(n * d_in), log] for n in n_neurons], device=device)
