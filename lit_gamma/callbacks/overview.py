"""Overview: the whole trajectory in one picture, and what holds for all callbacks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma import trajectory
from lit_gamma.errors import InputError
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.tensorboard import picture

FIRST_STEP = 1000
"""Before it the end alone is drawn: a picture takes a third of a second."""


class Overview(TrajectoryCallback):
    """Draws what the other callbacks record; says what they take for a matrix, and loggers get.

    Images, as ``trajectory/overview``: see :func:`lit_gamma.trajectory.plot`, also at the end.

    Args:
        pictures: The steps to draw, from 1,000 on; by default one per factor of ten.
        all_tags: Whether loggers get a curve for every matrix and every column of the files; by
            default they get means over the matrices of a role, of what tells most.
        per_head: Whether queries, keys and values are matrices head by head, of d_head neurons
            each, for every callback that records weights; nulls are those of the heads' shape. By
            default all heads are one matrix.
    """

    default_pictures = Schedule(per_decade=1)
    expected_seconds: ClassVar[Mapping[str, float]] = {"pictures": 0.35}

    def __init__(
        self, pictures: Schedule | None = None, all_tags: bool = False, per_head: bool = False
    ) -> None:
        super().__init__(pictures=pictures)
        self.all_tags = all_tags
        self.per_head = per_head

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "per_head": self.per_head}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if (recorded := state_dict.get("per_head", False)) != self.per_head:
            raise InputError(
                f"per_head is {self.per_head}, but the record that the checkpoint continues was "
                f"made with {recorded}; set it to that, or start anew"
            )

    @override
    def due(self, step: int) -> bool:
        return False

    @override
    def draws(self, step: int) -> bool:
        return step >= FIRST_STEP and super().draws(step)

    @override
    def measure_if_due(self, last: bool = False) -> None:
        if not last:
            super().measure_if_due()

    @override
    def finish(self, completed: bool = True) -> None:
        """Draws the end, when all others have recorded it."""
        run = self.run
        if run.step > max(self.file.last_drawn, self.file.began):
            with self.bill.billed("pictures"), run.optional(f"{self.name}: the last picture"):
                self.draw(run.trainer, run.module, run.writer)
            self.file.last_drawn = run.step
        super().finish(completed)

    @override
    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        if not self.run.pictured:
            return
        for callback in self.run.callbacks:
            callback.flush()
        made_with, seed, step = self.run.hyperparameters, self.run.seed, self.run.step
        begun = {"γ": "gamma", "std": "init_std", "from": "init_from"}
        known = {sign: made_with.get(name) for sign, name in begun.items()} | {"seed": seed}
        named = [f"{name} {value}" for name, value in known.items() if value is not None]
        drawn = painted(self.run.folder, ", ".join([*named, f"step {step:,}"]))
        self.run.show("trajectory/overview", drawn)


def painted(run_dir: Any, title: str) -> Summary.Image:
    """The figure as a PNG of 64 colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(trajectory.plot(run_dir, title))
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels = Image.fromarray(drawn).convert("RGB")
    return picture(pixels.quantize(64, dither=Image.Dither.NONE))
