"""Weight norms: how large is a matrix, how fast does it change, where do its neurons point?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.rows import Rows, add_over_ranks, in_own_slot
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.trajectory.table import Index, Quantity

BLOCK_SIZE = 8
"""Vectors that follow the leading singular directions of each matrix."""


class WeightNorms(TrajectoryCallback):
    """Records what is cheap to know of every weight matrix, from a few sums over its rows.

    The spectral norm comes from one step of a warm-started block power iteration, exact at the
    first step, with its own certificate (:mod:`~lit_gamma.metrics.power_iteration`): the largest
    singular value lies between ``spectral_norm`` and ``spectral_norm + spectral_norm_error``. Under
    FSDP2 every rank sums over its own rows, and one all_reduce adds the sums of all matrices.

    Logged as ``4_weight_norms/implied_gamma`` and ``4_weight_norms/update_ratio``, means over all
    matrices; the file has the ``quantities`` below of each. The mean cosine misses condensation
    onto v and -v, see :class:`Condensation`; it is NaN of a single neuron, which has no pair. The
    update ratio is NaN at the first recorded step.

    Args:
        schedule: The steps to record.
        overhead: See :class:`TrajectoryCallback`.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
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
            "norm of the change since the recorded step before, over the norm then",
            chart="update ratio, mean",
            joined="mean",
        ),
        Quantity("spectral_norm", "largest singular value, estimated from below", range=">= 0"),
        Quantity(
            "spectral_norm_error", "the largest singular value is at most spectral_norm + this"
        ),
    )

    section = "4"

    def __init__(self, schedule: Schedule | None = None, overhead: float | None = None) -> None:
        super().__init__(schedule, overhead)
        self._loaded: dict[int, Tensor] = {}
        self._blocks: dict[tuple[int, ...], Tensor] = {}
        self._previous: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._spent: dict[tuple[int, ...], Tensor] = {}

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        return self.run.weights.index()

    @override
    def start(self, run: Run) -> None:
        known = self._loaded if run.step > 0 else {}
        if not known:
            for group in run.weights.groups(run.step):
                blocks = metrics.leading_block(group.weight, BLOCK_SIZE)
                known.update(zip(group.positions, blocks, strict=True))
        self._blocks, self._previous, self._spent = {}, {}, {}
        for rows in run.weights.rows():
            stacked = torch.stack([known[i] for i in rows.positions])
            self._blocks[rows.positions] = stacked.to(run.device)
            if self.file.last_step == run.step > 0:  # The checkpoint's weights are the ones before.
                self._sums(rows, rows.copy())
        super().start(run)

    @override
    def take(self) -> None:
        groups = self.run.weights.rows()
        copies = [rows.copy(self._spent.get(rows.positions)) for rows in groups]
        # Many small operations, which are cheaper in inference mode than under no_grad alone.
        with side_stream(self.run.device), torch.inference_mode():
            sums = [self._sums(rows, copy) for rows, copy in zip(groups, copies, strict=True)]
            add_over_ranks(
                [part for parts in sums for part in parts.values()],
                [rows.ranks for rows, parts in zip(groups, sums, strict=True) for _ in parts],
            )
            for rows, parts in zip(groups, sums, strict=True):
                self.file.append(self.run.step, self._measured(rows, **parts), rows.positions)

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        squares, change, before, present = measured["totals"].unbind(1)
        n_entries, log_d = measured["shape"].unbind(1)
        rms = (squares / n_entries).sqrt()
        bounds = metrics.spectral_norm_bounds(measured["ritz"], measured["residual"])
        return {
            "frobenius_norm": squares.sqrt(),
            "rms": rms,
            "max_row_norm": measured["largest"],
            "implied_gamma": -rms.log() / log_d,
            "mean_cosine": metrics.mean_of_pairs(measured["directions"] - present, present),
            "update_ratio": (change / before).sqrt(),
            "spectral_norm": bounds[0],
            "spectral_norm_error": bounds[1],
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        blocks = {
            position: block
            for positions, stacked in self._blocks.items()
            for position, block in zip(positions, stacked.cpu(), strict=True)
        }
        return {**super().state_dict(), "blocks": blocks}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict["blocks"]

    def _sums(self, rows: Rows, values: Tensor) -> dict[str, Tensor]:
        """What adds up over rows, for the m matrices of a group; keeps them as the previous ones.

        Returns:
            ``totals``: squared norm, squared change, squared norm before and number of non-zero
            rows, (m, 4); ``largest`` row norm, a slot per rank; ``product``: VWᵀW and below it
            the sum of the rows' directions, (m, b + 1, d_in).
        """
        norms = torch.linalg.vector_norm(values, dim=1)
        inverse = norms.reciprocal().nan_to_num_(nan=math.nan, posinf=0)
        previous = self._previous.get(rows.positions)
        if previous is None:
            change = before = torch.full_like(norms, torch.nan)
        else:
            change = torch.linalg.vector_norm(previous[0].sub_(values), dim=1)
            self._spent[rows.positions], before = previous
        self._previous[rows.positions] = values, norms
        per_row = torch.stack((norms, change, before, inverse.sign()), dim=1).square_()
        products = []
        weights, directions = rows.stacked(values), rows.stacked(inverse)
        blocks = self._blocks[rows.positions].split_with_sizes(rows.counts)
        for weight, direction, block in zip(weights, directions, blocks, strict=True):
            of_neurons = torch.cat((block @ weight.mT, direction.unsqueeze(1)), dim=1)
            products.append(of_neurons @ weight)
        return {
            "totals": rows.sums(per_row),
            "largest": in_own_slot(rows.maxima(norms), rows.ranks),
            "product": torch.cat(products),
        }

    def _measured(
        self, rows: Rows, totals: Tensor, largest: Tensor, product: Tensor
    ) -> dict[str, Tensor]:
        """What :meth:`settle` takes, from the sums over all rows; the blocks go a step on."""
        block, directions = self._blocks[rows.positions], product[:, -1]
        product = product[:, :-1]
        ritz, residual = metrics.ritz_matrix(block, product)
        self._blocks[rows.positions] = metrics.next_block(product)
        missing = BLOCK_SIZE - block.shape[1]  # Zeros do not change the largest Ritz value.
        return {
            "shape": _shape(rows.n_neurons, block.shape[2], block.device),
            "totals": totals,
            "largest": largest.amax(1),
            "directions": directions.square().sum(-1),
            "ritz": F.pad(ritz, (0, missing, 0, missing)) if missing else ritz,
            "residual": residual,
        }


@cache
def _shape(n_neurons: tuple[int, ...], d_in: int, device: torch.device) -> Tensor:
    """Number of entries and ln(d_in) of each matrix, (m, 2), copied to the device once."""
    log = math.log(d_in) if d_in > 1 else math.nan
    return torch.tensor([[float(n * d_in), log] for n in n_neurons], device=device)
