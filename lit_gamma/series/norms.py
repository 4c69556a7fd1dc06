"""``WeightNorms`` of a series, whose checkpoints lie far apart and do not fit in memory twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lit_gamma import callbacks
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.current import CurrentWeights, WeightGroup
from lit_gamma.recording.record_file import RecordFile
from lit_gamma.recording.run import Run
from lit_gamma.series.weights import StoredWeights


class WeightNorms(callbacks.WeightNorms):
    """The same quantities, matrix by matrix, each as at the start of a run.

    The spectral norm is exact at every checkpoint, for none is near enough to the next for a warm
    start. The update ratio is that of the change since the checkpoint measured before, per step.
    """

    @override
    def start(self, run: Run) -> None:
        TrajectoryCallback.start(self, run)  # Nothing is kept from one checkpoint to the next.

    @override
    def take(self) -> None:
        weights = self.run.weights
        assert isinstance(weights, StoredWeights)
        for group in weights.groups(self.run.step):
            values = _as_at_a_start(group, self.run)
            change = self._change(weights, group)
            self.file.append(self.run.step, {**values, "since_earlier": change}, group.positions)

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**super().settle(measured), "update_ratio": measured["since_earlier"]}

    def _change(self, weights: StoredWeights, group: WeightGroup) -> Tensor:
        if weights.earlier is None:
            return torch.full((1,), torch.nan)
        before = weights.matrix(group.positions[0], weights.earlier)
        norm: Tensor = before.norm()
        change: Tensor = before.sub_(group.weight[0]).norm()
        return (change / norm / (self.run.step - self.file.last_step))[None]


def _as_at_a_start(group: WeightGroup, of: Run) -> Mapping[str, Tensor]:
    """What ``WeightNorms`` appends to the record of a run that starts with one matrix."""
    module = nn.Module()
    module.weight = nn.Parameter(group.weight[0], requires_grad=False)
    norms = callbacks.WeightNorms()
    norms.file = held = _Held()
    run = Run(module, of.folder, [norms], of.step, dry=True)
    run.weights = _One(module, group)
    norms.start(run)
    run.callbacks = ()  # Or the two would hold each other, and the matrix, until a collection.
    return held.values


class _Held(RecordFile):
    """A record of one step, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Tensor] = {}

    @override
    def append(
        self, step: int, values: Mapping[str, Tensor], items: Sequence[int] | None = None
    ) -> None:
        self.values |= values


class _One(CurrentWeights):
    """A matrix that was read already, not copied once more."""

    def __init__(self, module: nn.Module, group: WeightGroup) -> None:
        super().__init__(module)
        self._group = group

    @override
    def groups(self, step: int, positions: Sequence[int] | None = None) -> Any:
        if positions is None or len(positions):
            yield WeightGroup([0], self._group.matrices, self._group.weight)
