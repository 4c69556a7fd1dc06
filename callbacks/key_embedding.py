"""How the numbers of the anchor task come to lie in the embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma import InputError
from lit_gamma.callbacks import Quantity, Schedule, TrajectoryCallback
from lit_gamma.data import AnchorComposition
from lit_gamma.recording.run import Run

EIGENVALUES = 5
"""How many are recorded, the largest first."""


def refuse_other_data(what: str, trainer: Trainer) -> None:
    """Refuses data other than the anchor task's.

    Args:
        what: Which callback reads what of it.
        trainer: The trainer that has the data.

    Raises:
        InputError: It has other data.
    """
    if not isinstance(trainer.datamodule, AnchorComposition):
        raise InputError(
            f"{what} of AnchorComposition, but the data is {type(trainer.datamodule).__name__}; "
            "leave the callback out"
        )


def key_vectors(run: Run) -> Tensor:
    """The rows of the embedding that are keys, (n_keys, d_model), float32, less their mean."""
    roles = [matrix.role for matrix in run.weights.matrices]
    (group,) = run.weights.groups(run.step, [roles.index("embedding")])
    low, high = run.data.token_range
    vectors = group.weight[0, low : high + 1].float()
    return vectors - vectors.mean(0)


class KeyEmbedding(TrajectoryCallback):
    """Records the embedding of the keys of :class:`AnchorComposition`, less its mean.

    Which directions grow first, and do the numbers come to lie in their order? Both are read off
    the n keys' vectors x_k: the eigenvalues of their covariance, sum(x x^T) / (n - 1), and the
    mean cosine of neighbours.

    Args:
        schedule: The steps to record; by default ten per factor of ten.
    """

    default_schedule = Schedule(per_decade=10)
    quantities: ClassVar[Sequence[Quantity]] = (
        *(
            Quantity(
                f"eigenvalue_{i}",
                f"eigenvalue {i} of the covariance of the keys' vectors",
                range=">= 0",
                chart="covariance of the keys",
            )
            for i in range(1, EIGENVALUES + 1)
        ),
        Quantity(
            "neighbour_cosine",
            "mean cosine between the vectors of keys k and k + 1",
            range="-1..1",
            note="null -1 / (n - 1), as the mean is taken away",
            chart="neighbouring keys",
        ),
    )

    section = "1"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data without keys."""
        refuse_other_data("KeyEmbedding reads the keys", trainer)

    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        """Looks at the rows of the embedding that are keys."""
        vectors = key_vectors(self.run)
        gram = vectors.double() @ vectors.double().T / (len(vectors) - 1)
        near = torch.cosine_similarity(vectors[1:], vectors[:-1], dim=1)
        return {"gram": gram[None], "neighbour_cosine": near.mean()[None]}

    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The eigenvalues, taken only as values are written: their solver waits for the device."""
        largest = torch.linalg.eigvalsh(measured["gram"]).flip(-1)[:, :EIGENVALUES].clamp(min=0)
        values = {f"eigenvalue_{i}": largest[:, i - 1] for i in range(1, EIGENVALUES + 1)}
        return {**values, "neighbour_cosine": measured["neighbour_cosine"]}
