"""Who reads the key and the anchors, and in which layer?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from lightning import LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from callbacks.key_embedding import refuse_other_data
from lit_gamma import InputError
from lit_gamma.callbacks import Quantity, Schedule, TrajectoryCallback
from lit_gamma.probing.attention import watched_attention
from lit_gamma.probing.forward import Seen
from lit_gamma.recording.run import Run
from lit_gamma.trajectory.table import Index
from lit_gamma.weights.parameters import layer_of

SEQUENCES = 250
"""Unseen sequences that are read."""

PLACES = ("key", "first anchor", "second anchor", "last token")
"""The tokens between which attention is looked at."""


class AnchorAttention(TrajectoryCallback):
    """Records what the last token of :class:`AnchorComposition` attends to, in every head.

    The answer is asked for at the last token, so key and anchors have to reach it: it reads them
    itself, or reads a token that has read them in a layer before. Means are over the first
    :data:`SEQUENCES` of the validation set "unseen", less those whose last token is an anchor.

    Logged as ``1_anchor_attention/<quantity>/<head>``: the ``quantities`` below.

    Images, as ``1_anchor_attention/flow``: what flows where, after the drawings of arXiv
    2405.05409. Layers go from bottom to top; a line is as wide as the attention of the token at its
    upper end on the one at its lower. Those of the last token have their value at them; "others"
    are all other tokens, in grey. Heads have colours.

    Args:
        schedule: The steps to record; by default every 100 and two per factor of ten.
        pictures: The steps to draw; by default two per factor of ten.
    """

    default_schedule = Schedule(every=100, per_decade=2)
    default_pictures = Schedule(per_decade=2)
    quantities: ClassVar[Sequence[Quantity]] = tuple(
        Quantity(
            name.replace(" ", "_"),
            f"attention of the last token on the {name}, of unseen sequences",
            range="0..1",
            note="1 / length for uniform attention",
            chart=f"last token's attention on the {name}",
        )
        for name in PLACES[:3]
    )

    section = "1"

    def __init__(self, schedule: Schedule | None = None, pictures: Schedule | None = None) -> None:
        super().__init__(schedule, pictures)
        self._first: list[Seen] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses data without anchors, or with no token after them."""
        refuse_other_data("AnchorAttention reads the anchors", trainer)
        length = trainer.datamodule.context_length
        if length < 4:
            raise InputError(
                f"AnchorAttention needs a token after the anchors, and data.context_length is "
                f"{length}; make it 4 or more, or leave the callback out"
            )

    def start(self, run: Run) -> None:
        """Looks once, at what attention there is."""
        with torch.no_grad():
            self._first = self._flow()
        if not self._first:
            raise InputError(
                f"AnchorAttention sees no attention in the forward of {type(run.module).__name__}; "
                "leave the callback out"
            )
        super().start(run)

    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        """One row per head."""
        rows = [(of, head) for of in self._first for head in range(len(of.values["flow"]))]
        layers = [layer_of(f"{of.path}.0") for of, _ in rows]
        heads = [head for _, head in rows]
        index = {"module": [of.path for of, _ in rows], "layer": layers, "head": heads}
        return index, [f"layer{a}.head{b}" for a, b in zip(layers, heads, strict=True)]

    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        """Takes the last token's attention on the other three places."""
        flow = torch.cat([of.values["flow"] for of in self._flow()])
        names = [quantity.name for quantity in self.quantities]
        return dict(zip(names, flow[:, -1, :3].unbind(1), strict=True))

    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        """Draws the flow."""
        flow = [of.values["flow"].cpu() for of in self._flow()]
        if writer is not None:
            figure = drawn(flow, f"attention on unseen pairs, step {self.run.step}")
            writer.add_figure(f"{self.group}/flow", figure, self.run.step)

    def _flow(self) -> list[Seen]:
        """Of each layer the attention between the places, mean: ``flow``, (heads, reader, read)."""
        data, module = self.run.data, self.run.module
        ids = data.val_sets["unseen"].input_ids[:SEQUENCES]
        first_anchor = torch.isin(ids, torch.tensor(list(data.anchors))).int().argmax(1)
        inside = first_anchor + 2 < ids.shape[1]
        ids, first_anchor = ids[inside], first_anchor[inside]
        last = torch.full_like(first_anchor, ids.shape[1] - 1)
        places = torch.stack([first_anchor - 1, first_anchor, first_anchor + 1, last], dim=1)
        places = places.to(self.run.device)

        def measure(weights: Tensor, logits: Tensor | None) -> dict[str, Tensor]:
            rows = weights.take_along_dim(places[:, None, :, None], 2)
            return {"flow": rows.take_along_dim(places[:, None, None, :], 3).mean(0)}

        with self.run.probing(), watched_attention(module, measure) as seen:
            module(ids.to(self.run.device))
        return seen


def drawn(flow: Sequence[Tensor], title: str) -> Figure:
    """Draws who reads whom.

    Args:
        flow: Of each layer the attention between :data:`PLACES`, shape (heads, reader, read).
        title: What stands above it.

    Returns:
        A figure that is narrow enough for a phone.
    """
    figure = Figure(figsize=(5, 1.2 + 1.6 * len(flow)), dpi=80)
    axes = figure.add_axes((0.13, 0.1, 0.85, 0.82))
    for layer, of_layer in enumerate(flow):
        for head, attention in enumerate(of_layer):
            last = len(PLACES) - 1
            for reader in range(last if layer == len(flow) - 1 else 0, len(PLACES)):
                _draw_lines(axes, layer, head, reader, attention[reader].tolist())
        axes.scatter([-1, *range(len(PLACES))], [layer] * 5, s=60, color="#222222", zorder=3)
    axes.scatter(last, len(flow), s=60, color="#222222", zorder=3)
    axes.set_title(title, fontsize=11)
    axes.set_xticks(range(-1, 4), ["others", *(name.replace(" ", "\n") for name in PLACES)])
    levels = ["input", *(f"layer {layer}" for layer in range(len(flow)))]
    axes.set_yticks(range(len(levels)), levels)
    axes.set(xlim=(-1.4, 3.4), ylim=(-0.2, len(flow) + 0.2))
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    return figure


def _draw_lines(axes: Any, layer: int, head: int, reader: int, attention: list[float]) -> None:
    """Draws what one token reads in one head; "others" stand at -1."""
    is_last = reader == len(PLACES) - 1
    for read, weight in ((-1, max(0.0, 1 - sum(attention))), *enumerate(attention)):
        colour = f"C{head}" if read >= 0 else "#999999"
        line = {"lw": 9 * weight, "alpha": 0.9 if is_last else 0.3, "color": colour}
        axes.plot([read, reader], [layer, layer + 1], solid_capstyle="butt", **line)
        if is_last and weight >= 0.1:
            at = 0.22 + 0.16 * (head % 4)
            x, y = read + at * (reader - read), layer + at
            box = {"facecolor": "white", "edgecolor": colour, "pad": 1.5, "lw": 0.8}
            axes.text(x, y, f"{weight:.2f}", ha="center", va="center", size=8.5, bbox=box)
