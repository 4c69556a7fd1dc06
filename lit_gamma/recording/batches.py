"""Callbacks that measure training batches, from what ``training_step`` returned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from lit_gamma.errors import InputError
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule

TokenLossOf = Callable[[Any, Any], Tensor]
"""Makes the loss of every token from what ``training_step`` returned and the batch."""


class MicroBatches:
    """The batches that make one optimizer step.

    Args:
        step: Optimizer steps taken before them.

    Attributes:
        step: The same, of the batches being collected.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self._kept: list[Any] = []

    def add(self, kept: Any) -> None:
        """Keeps what is to be measured of a batch."""
        self._kept.append(kept)

    def finished(self, step: int) -> tuple[int, list[Any]]:
        """Hands over the batches of a step that has ended, and begins with the next.

        Args:
            step: Optimizer steps taken by now.

        Returns:
            The step that ended and what was kept of its batches; nothing while it goes on.
        """
        if step == self.step:
            return step, []
        ended, kept = self.step, self._kept
        self.step, self._kept = step, []
        return ended, kept


class BatchTrajectory(TrajectoryCallback):
    """Records quantities of the training batches, from what ``training_step`` returned.

    The batches of step t were run with the weights W_t; under gradient accumulation they are
    measured together. Subclasses implement :meth:`measure`.

    Args:
        schedule: The steps to record; every step by default.
        token_loss: Called with what ``training_step`` returned and the batch, returns the loss of
            every token, of any shape. By default it is the output's ``token_loss``.
    """

    needs_batches = True

    def __init__(
        self,
        schedule: Schedule | None = None,
        token_loss: TokenLossOf | None = None,
    ) -> None:
        super().__init__(schedule)
        self.token_loss = token_loss

    def kept(self, outputs: Any, batch: Any) -> Any:
        """What :meth:`measure` needs of a batch; by default what ``training_step`` returned."""
        return outputs

    def measure(self, outputs: Sequence[Any]) -> Mapping[str, Tensor]:
        """Measures the training batches of one optimizer step.

        Args:
            outputs: What :meth:`kept` returned for each micro-batch, detached.

        Returns:
            For each quantity a scalar tensor, or what :meth:`settle` takes, without the first
            dimension; always the same names.
        """
        raise NotImplementedError

    def token_loss_of(self, outputs: Any, batch: Any) -> Tensor:
        """The loss of a batch's tokens, detached, in nats, NaN where there is no label.

        Raises:
            InputError: ``training_step`` does not return it, and no function was given; or it is
                no tensor.
        """
        name = type(self).__name__
        if self.token_loss is None and not (
            isinstance(outputs, Mapping) and "token_loss" in outputs
        ):
            raise InputError(
                f"{name} finds no token_loss in what training_step returns; return it beside loss, "
                f"or give {name}(token_loss=function of outputs and batch)"
            )
        made = self.token_loss(outputs, batch) if self.token_loss else outputs["token_loss"]
        if not isinstance(made, Tensor):
            raise InputError(f"{name}: the loss of the tokens must be a tensor, got {made!r}")
        return made.detach()

    @override
    def start(self, run: Run) -> None:
        self._batches = MicroBatches(run.step)
        super().start(run)

    @override
    def collect(self, outputs: Any, batch: Any) -> None:
        skipped = outputs is None or (isinstance(outputs, Mapping) and not outputs)
        if not skipped and self.file.came(self.due, self._batches.step):
            self._batches.add(self.kept(outputs, batch))

    @override
    def measure_if_due(self, last: bool = False) -> None:
        step, outputs = self._batches.finished(self.run.step)
        if step < self.run.step:
            self.file.since = step
        if outputs and step > self.file.last_step:
            with self.bill.billed("record"):
                values = self.measure(outputs)
                self.file.append(step, {name: value[None] for name, value in values.items()})
                self.file.last_step = step
