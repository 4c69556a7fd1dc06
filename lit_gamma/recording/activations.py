"""Callbacks that measure activations, in a forward of one fixed batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from typing_extensions import override

from lit_gamma.errors import InputError
from lit_gamma.probing.forward import Forward, Seen, first_samples, plain_forward
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.table import Index
from lit_gamma.weights.parameters import layer_of

MAX_LABELS = 40
"""With more items than this, TensorBoard shows means over heads; the file has them all."""


class ProbeTrajectory(TrajectoryCallback):
    """Records quantities of activations, in a forward of one fixed probe batch.

    The probe batch is the start of the first training batch of the fit (rank 0's is recorded); it
    is kept in checkpoints, so that a resumed run measures the same. The forward leaves no trace in
    training, see :func:`~lit_gamma.probing.forward.undisturbed`, and runs uncompiled. W_0 is
    measured when that batch arrives, before it is trained on.

    Subclasses implement :meth:`watch`.

    Args:
        schedule: The steps to record; by default ten per factor of ten.
        samples: Samples in the probe batch.
        forward: Called with the module and the probe batch to run it. By default its
            ``training_step``, with logging switched off; give one if that does more than compute.

    Attributes:
        uniform: Quantity to the one that :meth:`watch` gives as its reference value.
    """

    default_schedule = Schedule(per_decade=10)
    needs_batches = True
    uniform: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        schedule: Schedule | None = None,
        samples: int = 8,
        forward: Forward | None = None,
    ) -> None:
        super().__init__(schedule)
        if samples < 1:
            raise InputError(f"{self.name}: samples must be at least 1, got {samples}")
        self.samples = samples
        self.forward = forward or plain_forward
        self.batch: Any = None
        self._waiting = False
        self._first: list[Seen] = []

    def watch(self, pl_module: Any) -> AbstractContextManager[list[Seen]]:
        """Opens what collects the quantities of a forward run inside.

        Args:
            pl_module: The module.

        Returns:
            A context that gives a list, which fills up in the order of the calls.
        """
        raise NotImplementedError

    def nothing_seen(self, pl_module: Any) -> str:
        """The message for a module in which :meth:`watch` has found nothing."""
        raise NotImplementedError

    @override
    def start(self, run: Run) -> None:
        self._waiting = True
        if run.step == 0:
            self.batch = None

    @override
    def before(self, batch: Any) -> None:
        super().before(batch)
        if not self._waiting:
            return
        self._waiting = False
        run = self.run
        kept = first_samples(batch, self.samples) if self.batch is None else self.batch
        self.batch = move_data_to_device(kept, run.device)
        with torch.no_grad():
            self._first = self._probe()
        if not self._first:
            raise InputError(f"{type(self).__name__} {self.nothing_seen(run.module)}")
        super().start(run)

    @override
    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        seen = self._probe()
        quantities = seen[0].values.keys() - self.uniform.values()
        return {
            name: torch.cat([each.values[name].reshape(-1) for each in seen])
            for name in seen[0].values
            if name in quantities
        }

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        """One row per layer, or per head of each; a layer called again counts as another."""
        calls: Counter[str] = Counter()
        rows: list[tuple[str, int | None, int | None]] = []
        for each in self._first:
            path = f"{each.path}#{calls[each.path]}" if calls[each.path] else each.path
            calls[each.path] += 1
            shape = next(iter(each.values.values())).shape
            heads = range(shape[0]) if shape else [None]
            rows += [(path, layer_of(f"{each.path}.norm"), head) for head in heads]
        index: Index = {"module": [row[0] for row in rows], "layer": [row[1] for row in rows]}
        if any(head is not None for _, _, head in rows):
            index = {**index, "head": [row[2] for row in rows]}
        few = self.run.all_tags or len(rows) <= MAX_LABELS
        return index, [_label(*row) if few else _label(row[0], row[1], None) for row in rows]

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        """The reference values on the probe batch."""
        if not self._first:
            return {}
        return {
            name: torch.cat([each.values[reference] for each in self._first]).double().cpu().numpy()
            for name, reference in self.uniform.items()
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "batch": move_data_to_device(self.batch, "cpu")}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.batch = state_dict["batch"]

    def _probe(self) -> list[Seen]:
        module = self.run.module
        with self.run.probing(), self.watch(module) as seen:
            self.forward(module, self.batch)
        return seen


def _label(path: str, layer: int | None, head: int | None) -> str:
    """Short name for charts: ``layer0.attention_norm``, ``layer0.attention.head1``, ``norm``.

    A block itself, ``blocks.0``, is ``layer0``.
    """
    name = path.rpartition(".")[2]
    places = (f"layer{layer}", name) if name != str(layer) else (f"layer{layer}",)
    place = name if layer is None else ".".join(places)
    return place if head is None else f"{place}.head{head}"
