"""On the unseen pair: does the model compose, or copy the mirror image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.key_embedding import key_vectors, refuse_other_data
from lit_gamma import trajectory
from lit_gamma.callbacks import Quantity, Schedule, TrajectoryCallback

SEQUENCES = 500
"""Unseen sequences that are answered: a share has a standard error of 2 % at most."""

AT_ONCE = 250
"""Sequences of one forward: few enough that their activations stay in a CPU's cache."""


class AnchorReasoning(TrajectoryCallback):
    """Records how the held-out pairs of :class:`~lit_gamma.data.AnchorComposition` are answered.

    The first :data:`SEQUENCES` of the validation set "unseen" are answered. Logged as
    ``1_anchor_reasoning/<quantity>``: the ``quantities`` below. A uniform guess answers
    the share 1 - 2 / vocab_size otherwise.

    Images, as ``1_anchor_reasoning/key_embedding``: the embedding of the key tokens on its first
    two principal components, coloured from the smallest key (blue) to the largest (red).

    Args:
        schedule: The steps to record; by default every 100 and two per factor of ten.
        pictures: The steps to draw; by default two per factor of ten.
    """

    default_schedule = Schedule(every=100, per_decade=2)
    default_pictures = Schedule(per_decade=2)
    quantities: ClassVar[Sequence[Quantity]] = tuple(
        Quantity(
            name, f"share of unseen sequences answered {how}", range="0..1", chart="unseen pair"
        )
        for name, how in {
            "composition": "by composition",
            "symmetry": "as the mirror image",
            "other": "otherwise",
        }.items()
    )

    section = "1"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data that has no held-out pair."""
        refuse_other_data("AnchorReasoning reads the pairs", trainer)

    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        """Answers the beginning of the unseen validation set."""
        unseen = self.run.data.val_sets["unseen"]
        with self.run.probing():
            parts = unseen.input_ids[:SEQUENCES].to(pl_module.device).split(AT_ONCE)
            answered = torch.cat([pl_module(part)[:, -1].argmax(-1) for part in parts]).cpu()
        composed = answered == unseen.answers[:SEQUENCES]
        mirrored = answered == self.run.data.mirrored_answers(unseen)[:SEQUENCES]
        mirrored &= ~composed
        shares = torch.stack([composed, mirrored, ~(composed | mirrored)]).float().mean(1, True)
        return dict(zip(("composition", "symmetry", "other"), shares, strict=True))

    def in_words(self) -> str | None:
        """How the unseen pair was answered last."""
        table = trajectory.load(self.run.folder, [self.name]).get(self.name)
        if table is None:
            return None
        last = table.iloc[-1]
        shares = ", ".join(f"{q.name} {last[q.name]:.2f}" for q in self.quantities)
        return f"unseen pair at step {last['step']:.0f}: {shares}"

    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        """Draws the plane of the keys."""
        vectors = key_vectors(self.run).double().cpu()
        if writer is None:  # Only now: sharded weights are gathered by all ranks together.
            return
        low, high = self.run.data.token_range
        keys = torch.arange(low, high + 1)
        _, s, directions = torch.linalg.svd(vectors, full_matrices=False)
        x, y = (vectors @ directions[:2].T).T
        share = s[:2].square() / s.square().sum()

        figure = Figure(figsize=(5, 4.2), dpi=80)
        axes = figure.add_subplot()
        figure.subplots_adjust(left=0.19, right=0.98)
        points = axes.scatter(x, y, c=keys, cmap="coolwarm", s=18)
        figure.colorbar(points, label="key")
        axes.set(
            title=f"embedding of the keys, step {self.run.step}",
            xlabel=f"first principal component ({share[0]:.0%})",
            ylabel=f"second ({share[1]:.0%})",
        )
        writer.add_figure(f"{self.group}/key_embedding", figure, self.run.step)
