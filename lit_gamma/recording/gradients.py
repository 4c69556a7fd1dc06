"""Callbacks that measure gradients: where they are complete, and what the step made of them."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run


class GradientTrajectory(TrajectoryCallback):
    """Records quantities of the gradients. Subclasses implement the first three methods below.

    The gradients of step t are those of W_t, which make W_(t+1). Whoever trains calls
    :meth:`complete` once they are added up over micro-batches and processes and no longer scaled,
    before they are clipped and zeroed; under Lightning that is ``on_before_optimizer_step``. Of
    several optimizers that step in one batch, those before the last step are taken.
    """

    def read(self, clipped: bool) -> None:
        """Reads the gradients of ``self.run.step``; they are gone later.

        Args:
            clipped: Whether they are clipped already.
        """
        raise NotImplementedError

    def read_clipped(self) -> None:
        """Reads the gradients that an optimizer has just taken a step by."""
        raise NotImplementedError

    def record_step(self, step: int) -> None:
        """Records what was read of a step, if anything, now that the weights are the next ones."""
        raise NotImplementedError

    def complete(self, clipped: bool = False) -> None:
        """The gradients of a step are complete; see :meth:`read`."""
        self._at = self.run.step
        self.read(clipped)

    @override
    def start(self, run: Run) -> None:
        self._at = run.step
        self._own = {id(parameter) for parameter in run.module.parameters()}
        self._hook: RemovableHandle = register_optimizer_step_post_hook(self._stepped)
        super().start(run)

    @override
    def finish(self, completed: bool = True) -> None:
        self._hook.remove()
        super().finish(completed)

    @override
    def measure_if_due(self, last: bool = False) -> None:
        if self._at < self.run.step:
            self.record_step(self._at)
            self.file.since = self._at

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self.complete()

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        stepped = (p for group in optimizer.param_groups for p in group["params"])
        if any(id(parameter) in self._own for parameter in stepped):
            self.read_clipped()
