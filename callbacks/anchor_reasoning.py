"""On the unseen pair: does the model compose, or copy the mirror image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from lit_gamma import InputError
from lit_gamma.callbacks import Schedule, TrajectoryCallback
from lit_gamma.data import AnchorComposition


class AnchorReasoning(TrajectoryCallback):
    """Records how the held-out pairs of :class:`AnchorComposition` are answered.

    Logged, as ``anchor_reasoning/<quantity>``, shares of the unseen validation set, 0 .. 1:

    =========== =================================================================
    quantity    meaning
    =========== =================================================================
    composition answered by composing the two functions: reasoning
    symmetry    answered as the mirror-image pair is in training: memorizing
    other       answered otherwise; a uniform guess reads 1 - 2 / vocab_size
    =========== =================================================================

    Images, as ``anchor_reasoning/key_embedding``: the embedding of the key tokens on its first two
    principal components, coloured from the smallest key (blue) to the largest (red).

    Args:
        schedule: The steps to record; by default every 50 and four per factor of ten.
        pictures: The steps to draw; by default four per factor of ten.
    """

    default_schedule = Schedule(every=50, per_decade=4)
    default_pictures = Schedule(per_decade=4)
    meanings: ClassVar[Mapping[str, str]] = {
        "composition": "share of unseen sequences answered by composition; 0..1",
        "symmetry": "share of unseen sequences answered as the mirror image; 0..1",
        "other": "share of unseen sequences answered otherwise; 0..1",
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "unseen pair": ["composition", "symmetry", "other"]
    }

    def __init__(
        self,
        schedule: Schedule | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(schedule, pictures=pictures)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data that has no held-out pair."""
        if not isinstance(trainer.datamodule, AnchorComposition):
            raise InputError(
                f"AnchorReasoning reads the pairs of AnchorComposition, but the data is "
                f"{type(trainer.datamodule).__name__}; leave the callback out"
            )

    def observe(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, Tensor]:
        """Answers the whole unseen validation set."""
        data = trainer.datamodule
        unseen = data.val_sets["unseen"]
        answered = self._answers(pl_module, unseen.input_ids)
        composed = answered == unseen.answers
        mirrored = (answered == data.mirrored_answers(unseen)) & ~composed
        shares = torch.stack([composed, mirrored, ~(composed | mirrored)]).float().mean(1, True)
        return dict(zip(("composition", "symmetry", "other"), shares, strict=True))

    @staticmethod
    def _answers(pl_module: LightningModule, input_ids: Tensor) -> Tensor:
        training = pl_module.training
        pl_module.eval()
        logits = pl_module(input_ids.to(pl_module.device))
        pl_module.train(training)
        answered: Tensor = logits[:, -1].argmax(-1).cpu()
        return answered

    def draw(
        self, trainer: Trainer, pl_module: LightningModule, writer: SummaryWriter | None
    ) -> None:
        """Draws the plane of the keys."""
        if writer is None:
            return
        low, high = trainer.datamodule.token_range
        keys = torch.arange(low, high + 1)
        vectors = pl_module.transformer.embedding.weight[low : high + 1].double().cpu()
        vectors = vectors - vectors.mean(0)
        _, s, directions = torch.linalg.svd(vectors, full_matrices=False)
        x, y = (vectors @ directions[:2].T).T
        share = s[:2].square() / s.square().sum()

        figure = Figure(figsize=(5, 4.2), layout="constrained")
        axes = figure.add_subplot()
        points = axes.scatter(x, y, c=keys, cmap="coolwarm", s=18)
        figure.colorbar(points, label="key")
        axes.set(
            title=f"embedding of the keys, step {trainer.global_step}",
            xlabel=f"first principal component ({share[0]:.0%})",
            ylabel=f"second ({share[1]:.0%})",
        )
        writer.add_figure("anchor_reasoning/key_embedding", figure, trainer.global_step)
