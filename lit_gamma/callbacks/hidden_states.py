"""Hidden states: do the tokens' representations condense, and who writes them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from typing_extensions import override

from lit_gamma import metrics
from lit_gamma.probing.forward import Seen
from lit_gamma.probing.stream import watched_stream
from lit_gamma.recording.activations import ProbeTrajectory
from lit_gamma.recording.weights import gaussian_nulls
from lit_gamma.trajectory.table import Index, Quantity


class HiddenStates(ProbeTrajectory):
    """Records the states of the tokens in the residual stream, on a fixed probe batch.

    Condensation of representations (arXiv 2602.00217: the vectors of the tokens collapse into a
    cone) beside that of weights, with the same measures: the rows of one matrix are the states of
    all tokens of the probe batch, padding included, as they go into the first block and as they
    come out of each. The mean is not taken away. Their nulls are those of Gaussian rows; the same
    token at two places is a pair of equal rows where positions are not added, so at the input a
    batch reads above its null from the start.

    A block is what holds an attention's output projection and an MLP's. What these two write is
    taken where it is added to the stream; a part's share is ⟨write, sum⟩ / ‖sum‖², and what is
    missing to 1 was there before.

    Logged as ``5_hidden_states/<quantity>/<block>``, and ``<quantity>_over_null`` where there is a
    null: rank, cos² and the largest entry; the file has all ``quantities`` below.

    The arguments are those of :class:`ProbeTrajectory`.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "effective_rank",
            "of the states of all tokens: exp of the entropy of s / sum(s)",
            range="1..min(n, d)",
            null=metrics.null_effective_rank,
            null_formula="Marchenko-Pastur quadrature",
            chart="effective rank of the states ÷ null",
        ),
        Quantity(
            "participation_ratio",
            "of the states of all tokens: sum(s^2)^2 / sum(s^4)",
            range="1..min(n, d)",
            null=metrics.null_participation_ratio,
            null_formula="(nd + 2) / (n + d + 1)",
        ),
        Quantity(
            "mean_squared_cosine",
            "mean cos² between the states of distinct tokens",
            range="0..1",
            null=lambda n, d: metrics.null_mean_squared_cosine(d),
            null_formula="1 / d",
            chart="cos² between tokens ÷ null",
        ),
        Quantity(
            "mean_cosine",
            "mean cos between the states of distinct tokens",
            range="-1..1",
            note="null 0",
        ),
        Quantity("rms", "root mean square of the entries", range=">= 0"),
        Quantity(
            "largest_over_rms",
            "largest magnitude of an entry over their rms: massive activations (arXiv 2402.17762)",
            range=">= 1",
            note="4 to 6 for Gaussian entries",
            chart="largest entry of the states ÷ rms",
        ),
        Quantity(
            "attention_share",
            "share of the stream's squared norm that attention writes, where it is added",
            note="negative where it erases",
        ),
        Quantity(
            "mlp_share",
            "share of the stream's squared norm that the MLP writes, where it is added",
            note="negative where it erases",
        ),
    )
    reference = "its expectation for a Gaussian matrix of n_tokens rows and width columns"

    section = "5"

    @override
    def watch(self, pl_module: Any) -> AbstractContextManager[list[Seen]]:
        return watched_stream(pl_module)

    @override
    def nothing_seen(self, pl_module: Any) -> str:
        return (
            f"finds no block in the forward of {type(pl_module).__name__}: a module with an "
            "attention's output projection and an MLP's; name their roles by neuron_roles, or "
            "leave the callback out"
        )

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        index, labels = super().items(pl_module)
        n_tokens, width = ([each.shape[i] for each in self._first] for i in (0, 1))
        return {**index, "n_tokens": n_tokens, "width": width}, labels

    @override
    def nulls(self, pl_module: Any) -> Mapping[str, npt.NDArray[np.float64]]:
        return gaussian_nulls(self.quantities, [each.shape for each in self._first])

    @override
    def take(self) -> None:
        for i, each in enumerate(self._probe()):
            values = {name: value.unsqueeze(0) for name, value in each.values.items()}
            self.file.append(self.run.step, values, [i])

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        s = metrics.singular_values_of_gram(measured["gram"])
        found = {
            "effective_rank": metrics.effective_rank(s),
            "participation_ratio": metrics.participation_ratio(s),
            **measured,
        }
        return {quantity.name: found[quantity.name] for quantity in self.quantities}
