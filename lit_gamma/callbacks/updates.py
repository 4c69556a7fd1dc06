"""Updates: what does one optimizer step do to a matrix, and how far has it come from its start?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.rows import Rows, add_over_ranks, parts_held, whole_matrices
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.recording.weights import TIERED, gaussian_nulls
from lit_gamma.trajectory.table import Index, Quantity

_SQUARES = ("update", "before", "last", "far", "start", "weight")
_PRODUCTS = (("update", "before"), ("update", "last"), ("weight", "start"))


class Updates(TrajectoryCallback):
    """Records what the optimizer's last step has changed of every weight matrix.

    The update of step t is W_t - W_(t-1), of that one step however far apart records are: between
    sparse records many steps add up, and their sum has another rank. Weights are kept for the two
    steps before a record. An update has a spectrum as a matrix has: an optimizer that moves all
    neurons alike makes updates of low rank, before the weights are. What a step adds to the weights
    is known up to their own precision.

    Logged as ``4_updates/effective_rank_over_null/<role>`` and ``4_updates/distance/<role>``, means
    over the matrices of a role; the file has the ``quantities`` below of each. Of an update they
    are NaN at step 0, where there is none, and where Ctrl-C ends training between records.

    W_0 is kept, 4 bytes per weight on the device, and as much in every checkpoint; W_(t-1) too in
    one that is written right before a recorded step. The distance is NaN in a run that is resumed
    from a checkpoint without them.

    Args:
        schedule: The steps to record; by default the first three and four per factor of ten.
    """

    default_schedule = TIERED
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "relative_norm",
            "norm of the update of a single step, over the norm of the weights before",
            range=">= 0",
        ),
        Quantity(
            "effective_rank",
            "of the update: exp of the entropy of s / sum(s)",
            range="1..min(n, d)",
            null=metrics.null_effective_rank,
            null_formula="Marchenko-Pastur quadrature",
            chart="effective rank of an update ÷ null",
        ),
        Quantity(
            "participation_ratio",
            "of the update: sum(s^2)^2 / sum(s^4)",
            range="1..min(n, d)",
            null=metrics.null_participation_ratio,
            null_formula="(nd + 2) / (n + d + 1)",
        ),
        Quantity(
            "stable_rank",
            "of the update: sum(s^2) / max(s^2)",
            range="1..min(n, d)",
            null=metrics.null_stable_rank,
            null_formula="≈ nd / (√n + √d)²",
        ),
        Quantity(
            "cosine_with_weight",
            "cosine of the update with the weights before",
            range="-1..1",
            note="null 0; negative where weights decay",
        ),
        Quantity(
            "cosine_with_last",
            "cosine of the update with that of the step before",
            range="-1..1",
            note="null 0",
        ),
        Quantity(
            "distance",
            "norm of W_t - W_0, over the norm of W_0",
            range=">= 0",
            chart="distance from the start",
        ),
        Quantity("cosine_with_start", "cosine of W_t with W_0", range="-1..1"),
    )

    section = "4"

    def __init__(self, schedule: Schedule | None = None) -> None:
        super().__init__(schedule)
        self._loaded: Mapping[str, Any] = {}
        self._start: list[Tensor] = []
        self._kept: dict[int, list[Tensor]] = {}

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        return self.run.weights.index()

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        return gaussian_nulls(self.quantities, [m.weight.shape for m in self.run.weights.matrices])

    @override
    def start(self, run: Run) -> None:
        groups = run.weights.rows()
        now = [rows.copy() for rows in groups]
        loaded = self._loaded if run.step > 0 else {}
        self._kept = {run.step: now}
        if run.step == 0:
            self._start = now
        elif "start" in loaded:
            self._start = parts_held(groups, loaded["start"], run.device)
        else:
            self._start = [torch.full_like(values, torch.nan) for values in now]
        if "previous" in loaded:
            self._kept[run.step - 1] = parts_held(groups, loaded["previous"], run.device)
        super().start(run)

    @override
    def measure_if_due(self, last: bool = False) -> None:
        super().measure_if_due(last)
        step, wanted = self.run.step, self._wanted()
        if step in wanted and step not in self._kept:
            with self.bill.billed("prepare"), torch.no_grad():
                self._kept[step] = [rows.copy() for rows in self.run.weights.rows()]
        self._kept = {kept: copies for kept, copies in self._kept.items() if kept in wanted}

    @override
    def take(self) -> None:
        step, groups = self.run.step, self.run.weights.rows()
        now = self._kept.setdefault(step, [rows.copy() for rows in groups])
        with side_stream(self.run.device), torch.inference_mode():
            unknown = [torch.full_like(values, torch.nan) for values in now]
            before, earlier = (self._kept.get(step - k, unknown) for k in (1, 2))
            of_groups = zip(groups, now, before, earlier, self._start, strict=True)
            sums = [_sums(*of_group) for of_group in of_groups]
            add_over_ranks(
                [part for parts in sums for part in parts],
                [rows.ranks for rows, parts in zip(groups, sums, strict=True) for _ in parts],
            )
            for rows, (totals, *grams) in zip(groups, sums, strict=True):
                for stack, *of_stack in zip(rows.stacks, rows.by_stack(totals), grams, strict=True):
                    values = dict(zip(("totals", "gram"), of_stack, strict=True))
                    self.file.append(step, values, stack.positions)

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        names = (*_SQUARES, *_PRODUCTS)
        of = dict(zip(names, measured["totals"].double().unbind(1), strict=True))
        s = metrics.singular_values_of_gram(measured["gram"])

        def cosine(a: str, b: str) -> Tensor:
            return of[a, b] / (of[a] * of[b]).sqrt()

        return {
            "relative_norm": (of["update"] / of["before"]).sqrt(),
            **metrics.ranks(s),
            "cosine_with_weight": cosine("update", "before"),
            "cosine_with_last": cosine("update", "last"),
            "distance": (of["far"] / of["start"]).sqrt(),
            "cosine_with_start": cosine("weight", "start"),
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        kept = {"start": self._start} if self._start else {}
        if self._start and self.run.step - 1 in self._kept:
            kept["previous"] = self._kept[self.run.step - 1]
        whole = {name: whole_matrices(self.run.weights.rows(), held) for name, held in kept.items()}
        return {**super().state_dict(), **whole}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._loaded = state_dict

    def _wanted(self) -> set[int]:
        """The steps whose weights a record of this step, or of the two to come, needs."""
        step, end = self.run.step, self.run.total_steps
        after = self.file.last_step
        ahead = [s for s in range(step, step + 3) if s > after and (self.due(s) or s == end)]
        return {s - k for s in ahead for k in (0, 1, 2)}


def _sums(
    rows: Rows, weight: Tensor, before: Tensor, earlier: Tensor, start: Tensor
) -> list[Tensor]:
    """What adds up over rows: the sums of each matrix, (m, 9), and per stack the Gram matrices."""
    update = weight - before
    of = {"update": update, "before": before, "last": before - earlier}
    of |= {"far": weight - start, "start": start, "weight": weight}
    names = [*((name, name) for name in _SQUARES), *_PRODUCTS]
    totals = rows.dots(*((of[a], of[b]) for a, b in names))
    stacks = zip(rows.stacks, rows.stacked(update.double()), strict=True)
    grams = [part.mT @ part if s.by_columns else part @ part.mT for s, part in stacks]
    return [totals, *grams]
