"""The same recordings in a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.errors import InputError
from lit_gamma.files import parsed
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.gradients import GradientTrajectory
from lit_gamma.recording.run import Run
from lit_gamma.recording.summary import bill_in_words, bill_of, summarize, write_summary
from lit_gamma.trajectory.tensorboard import keep_writing


class Recording:
    """A run that is being recorded; opened by :func:`record`.

    Args:
        run: The run.
        state: What :meth:`state_dict` returned, to continue a record.

    Attributes:
        summary: What ``summary.json`` holds; empty until the recording has ended.
    """

    def __init__(self, run: Run, state: Mapping[str, Any] | None = None) -> None:
        self.run = run
        self.summary: dict[str, Any] = {}
        self._earlier_seconds = 0.0
        self._begun = False
        self._seen_batch = self._seen_gradients = False
        if state is not None:
            with parsed("record: the state is not what Recording.state_dict() returned"):
                self._continue(state)

    def _continue(self, state: Mapping[str, Any]) -> None:
        self.run.step = state["step"]
        self._earlier_seconds = state["seconds"]
        for callback in self.run.callbacks:
            if callback.state_key in state["callbacks"]:
                callback.load_state_dict(state["callbacks"][callback.state_key])
                callback.file.refuse_another(self.run.folder)

    def __enter__(self) -> Recording:
        self.run.begin()
        for callback in self.run.callbacks:
            callback.start(self.run)
        self._begun = True
        return self

    def batch(self, batch: Any, outputs: Any = None) -> None:
        """Shows a batch that was run, before the optimizer takes its step.

        Needed for callbacks of batches and activations alone. Under gradient accumulation, call it
        for each micro-batch.

        Args:
            batch: The batch; the module is probed with its first samples.
            outputs: A mapping with ``token_loss``: the loss of every token, detached, in nats, NaN
                where there is no label; or what the callbacks' own ``token_loss`` takes.
        """
        self._check_begun()
        self._seen_batch = True
        for callback in self.run.callbacks:
            callback.before(batch)
            callback.collect(outputs, batch)

    def gradients(self, clipped: bool = False) -> None:
        """Shows the gradients of a step: complete, unscaled, and not yet clipped.

        Needed for callbacks of gradients alone.

        Args:
            clipped: Whether they are clipped already, so that what that took is not known.

        Raises:
            InputError: There are none, or nothing was begun.
        """
        self._check_begun()
        self._seen_gradients = True
        seeing = [c for c in self.run.callbacks if isinstance(c, GradientTrajectory)]
        if seeing and all(p.grad is None for p in self.run.module.parameters()):
            raise InputError(
                f"{seeing[0].name} finds no gradient in {type(self.run.module).__name__}: call "
                "gradients() after backward() and before zero_grad(), with the module whose "
                "parameters are trained"
            )
        for callback in seeing:
            callback.complete(clipped)

    def step(self) -> None:
        """Records the new weights, after the optimizer's step.

        Raises:
            InputError: A callback records batches or gradients, and none were shown; or nothing
                was begun.
        """
        self._check_begun()
        starved = [c.name for c in self.run.callbacks if c.needs_batches and not self._seen_batch]
        if starved:
            raise InputError(
                f"{starved[0]} records batches: call batch(batch, outputs) for each, before step()"
            )
        seeing = [c.name for c in self.run.callbacks if isinstance(c, GradientTrajectory)]
        if seeing and not self._seen_gradients:
            raise InputError(
                f"{seeing[0]} records gradients: call gradients() at each step, after backward()"
            )
        self._seen_gradients = False
        self.run.step += 1
        for callback in self.run.callbacks:
            callback.advance()
        self.run.weights.release()

    def _check_begun(self) -> None:
        if not self._begun:
            raise InputError(
                "recording has not begun: write `with record(...) as trajectory:` around the loop"
            )

    def write(self) -> None:
        """Writes what waits to be written."""
        for callback in self.run.callbacks:
            callback.write()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs for the record to go on exactly; writes what is pending."""
        return {
            "step": self.run.step,
            "seconds": self._earlier_seconds + self.run.seconds,
            "callbacks": {c.state_key: c.state_dict() for c in self.run.callbacks},
        }

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish("finished")
        elif isinstance(error, KeyboardInterrupt):
            self.finish("interrupted")
        else:
            self.finish(f"{type(error).__name__}: {error}")

    def finish(self, status: str, metrics: Mapping[str, float] | None = None) -> None:
        """Ends the record, writes ``summary.json`` and prints the bill.

        Args:
            status: How training ended; ``finished`` if it came to its end.
            metrics: Validation metrics to put in the summary.
        """
        run = self.run
        for callback in run.callbacks:
            with run.optional(f"{callback.name}: its last weights"):
                if status == "finished" or (status == "interrupted" and run.alone):
                    callback.measure_if_due(last=True)
        for callback in run.callbacks:
            with run.optional(f"{callback.name}: the end of its record"):
                callback.finish(status == "finished")
        if run.writes:
            bill, whole = bill_of(run), self._earlier_seconds + run.seconds
            self.summary = summarize(run, status, whole, bill, metrics or {})
            write_summary(run, self.summary)
            print(bill_in_words(bill))
        if run.writer is not None:
            run.writer.close()


def _refuse_others(callbacks: Any) -> None:
    """Refuses what is no list of trajectory callbacks."""
    for callback in callbacks if isinstance(callbacks, Sequence) else [type(callbacks)]:
        if not isinstance(callback, TrajectoryCallback):
            what = callback.__name__ if isinstance(callback, type) else type(callback).__name__
            raise InputError(
                f"record takes a list of callbacks that record, such as [WeightNorms()], not {what}"
                "; the others are for Lightning's Trainer, and the summary is written anyway"
            )


def record(
    model: nn.Module,
    run_dir: str | Path,
    callbacks: Sequence[TrajectoryCallback],
    total_steps: float = math.inf,
    state: Mapping[str, Any] | None = None,
    tensorboard: bool = False,
    hyperparameters: Mapping[str, Any] | None = None,
    data: Any = None,
    validation: Mapping[str, Iterable[Any]] | None = None,
    trainer: Any = None,
) -> Recording:
    """Records the developmental trajectory of a module in a loop of one's own.

    ::

        with record(model, "runs/mine", [Condensation(), TokenLoss()]) as trajectory:
            for batch in loader:
                losses = ...
                losses.mean().backward()
                trajectory.batch(batch, {"token_loss": losses.detach()})
                trajectory.gradients()  # For Gradients alone; then clip.
                optimizer.step()
                optimizer.zero_grad()
                trajectory.step()

    What is recorded, when and at what cost is as under Lightning: same files, columns, budgets and
    resume. In several processes all make the same calls, and rank 0 writes.

    Args:
        model: The module that is trained.
        run_dir: Where the record goes.
        callbacks: What is recorded; one of a class.
        total_steps: Optimizer steps of the whole run, so that budgets can be kept.
        state: What :meth:`Recording.state_dict` returned, to continue its record.
        tensorboard: Write TensorBoard's files too.
        hyperparameters: For the metadata of the files; ``gamma`` for the summary.
        data: What the batches come from, see :mod:`lit_gamma.recording.described`.
        validation: Validation sets by name, for ``ProbeLoss``.
        trainer: What trains, passed on to ``observe`` and ``draw``.

    Returns:
        A context, which writes ``summary.json`` and prints the bill when it is left, however.

    Raises:
        InputError: ``run_dir`` holds a record that the state does not continue, two callbacks
            would write the same table, one records nothing, or the state is none.
    """
    folder = Path(run_dir)
    _refuse_others(callbacks)
    names = [callback.name for callback in callbacks]
    if twins := [name for name in names if names.count(name) > 1]:
        raise InputError(f"record: two callbacks write the table {twins[0]}; give one of them")
    if state is None and any(folder.glob("trajectory/*.arrow")):
        raise InputError(
            f"{folder} holds a record already: name another folder, or give the state of its "
            "checkpoint to continue it"
        )
    run = Run(
        module=model,
        folder=folder,
        callbacks=callbacks,
        total_steps=total_steps,
        trainer=trainer,
        data=data,
        validation=lambda: validation or {},
        hyperparameters=hyperparameters or {},
    )
    if tensorboard and run.writes:
        run.writer = keep_writing(SummaryWriter(folder))
    return Recording(run, state)
