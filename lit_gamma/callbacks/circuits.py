"""Circuits: in how many directions does a head compare, and in how many does it write?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.errors import InputError
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.current import CurrentWeights
from lit_gamma.recording.run import Run
from lit_gamma.recording.side_stream import side_stream
from lit_gamma.recording.weights import TIERED
from lit_gamma.trajectory.table import Index, Quantity
from lit_gamma.weights.attentions import Factors, circuits
from lit_gamma.weights.neurons import neurons

_SIMULATED = "simulated: two Gaussian factors"


class Circuits(TrajectoryCallback):
    """Records the ranks of what every head computes with: W_Qᵀ W_K and W_O W_V.

    A head compares tokens by its QK circuit and writes by its OV circuit ("A Mathematical Framework
    for Transformer Circuits", Elhage et al., 2021), d_model × d_model matrices of rank d_head at
    most. Their singular values s are found from d_head × d_head products. The null is that of two
    independent Gaussian factors: two random matrices have a product of lower rank than either, so
    1 means that Q and K, or V and O, know nothing of each other and are not condensed. Under GQA
    heads share keys and values; all have circuits of their own.

    The spectrum is of the weights alone. It leaves out what stands between the factors or around
    them: rotary positions (the QK circuit is that of two tokens at one place), the norm of queries
    and keys (q/k-norm, of each token's own size, with its scale), the gate of gated attention
    (between V and O, of each token's own), biases, the norm before the attention with its scale,
    and adapters.

    Logged as ``3_circuits/<quantity>_over_null/<qk or ov>``, effective and stable rank, means over
    all heads; the file has the ``quantities`` below of each.

    Args:
        schedule: The steps to record; by default the first three and four per factor of ten.
    """

    default_schedule = TIERED
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "effective_rank",
            "of a head's circuit: exp of the entropy of s / sum(s)",
            range="1..d_head",
            null_formula=_SIMULATED,
            chart="effective rank of circuits ÷ null",
        ),
        Quantity(
            "participation_ratio",
            "of a head's circuit: sum(s^2)^2 / sum(s^4)",
            range="1..d_head",
            null_formula=_SIMULATED,
        ),
        Quantity(
            "stable_rank",
            "of a head's circuit: sum(s^2) / max(s^2)",
            range="1..d_head",
            null_formula=_SIMULATED,
            chart="stable rank of circuits ÷ null",
        ),
    )
    reference = "its mean for the product of two independent Gaussian factors of these shapes"

    section = "3"

    @override
    def start(self, run: Run) -> None:
        self._weights = CurrentWeights(run.module, per_head=True)
        self._circuits = self._found()
        super().start(run)

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        found = self._found()
        index: Index = {
            "matrix": [of.name for of in found],
            "role": [of.circuit for of in found],
            "layer": [of.layer for of in found],
            "head": [of.head for of in found],
            "d_head": [of.shape[0] for of in found],
        }
        places = ("" if of.layer is None else f"layer{of.layer}." for of in found)
        labels = zip(places, found, strict=True)
        return index, [f"{place}{of.circuit}.head{of.head}" for place, of in labels]

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        nulls = [metrics.null_product_ranks(*of.shape) for of in self._found()]
        return {name: np.array([null[name] for null in nulls]) for name in nulls[0]}

    @override
    def take(self) -> None:
        grams = self._grams()
        by_width: dict[int, list[int]] = {}
        for i, of in enumerate(self._circuits):
            by_width.setdefault(of.shape[0], []).append(i)
        with side_stream(self.run.device):
            for positions in by_width.values():
                found = [self._circuits[i] for i in positions]
                left = torch.stack([grams[of.left, _part(of)] for of in found])
                right = torch.stack([grams[of.right, None] for of in found])
                self.file.append(self.run.step, {"left": left, "right": right}, positions)

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        s = metrics.singular_values_of_product(measured["left"], measured["right"])
        return metrics.ranks(s)

    def _found(self) -> list[Factors]:
        """The circuits in the module, which is asked for them before the recording starts too."""
        module = self.run.module
        if found := circuits(list(neurons(module, per_head=True))):
            return found
        raise InputError(
            f"Circuits finds no queries and keys of one layer in {type(module).__name__}; name "
            "their roles by neuron_roles, or leave the callback out"
        )

    def _grams(self) -> dict[tuple[int, int | None], Tensor]:
        """Position of a factor, and head of an output projection, to its d_head × d_head Gram."""
        grams: dict[tuple[int, int | None], Tensor] = {}
        outs = {of.left: of.n_heads for of in self._circuits if of.circuit == "ov"}
        heads = {i for of in self._circuits for i in (of.left, of.right)} - outs.keys()
        for group in self._weights.groups(self.run.step, sorted(heads)):
            with side_stream(group.weight.device):
                rows = group.weight.double()
                each = zip(group.positions, rows @ rows.mT, strict=True)
            grams |= {(i, None): gram for i, gram in each}
        for n_heads in sorted(set(outs.values())):
            positions = [i for i, n in outs.items() if n == n_heads]
            for group in self._weights.groups(self.run.step, positions):
                with side_stream(group.weight.device):
                    b, d_out, _ = group.weight.shape
                    parts = group.weight.double().view(b, d_out, n_heads, -1).transpose(1, 2)
                    each = zip(group.positions, parts.mT @ parts, strict=True)
                grams |= {(i, head): gram for i, of in each for head, gram in enumerate(of)}
        return grams


def _part(of: Factors) -> int | None:
    """Which part of the left factor is the head's; all of it where heads are apart."""
    return of.head if of.circuit == "ov" else None
