"""Run summary: what has the run come to?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.tensorboard.summary import hparams
from typing_extensions import override

from lit_gamma.recording.callback import trajectory_callbacks
from lit_gamma.recording.lightning_run import run_of, tensorboard_writer
from lit_gamma.recording.run import Run
from lit_gamma.recording.summary import bill_of, summarize, write_summary
from lit_gamma.trajectory.jsonable import jsonable


class RunSummary(Callback):
    """Writes ``summary.json`` in the run's directory at the end of fit, also after an interrupt.

    It holds gamma, init_std or init_from, seed, status (``finished``, ``diverged at step N``,
    ``interrupted``, ``terminated`` or the error), optimizer steps, seconds of training (all parts
    of a resumed run), the validation metrics by name as last measured, ``measured_at``, the step of
    that, the ``validations`` by their steps, what each trajectory callback cost (host time per
    step, and as a share of a step without them) with the number of matrices that took turns at each
    step, ``holes``, the steps that could not be written, if any, ``findings``, what a callback says
    of its record, per role the step and value of the strongest condensation and of the lowest
    effective rank, both ÷ null, and the ``phases``, see :func:`lit_gamma.trajectory.phases` (null:
    none, or an open end), the strongest ``in_words``.
    TensorBoard has these as Text.
    TensorBoard's HParams compare runs by gamma, seed, optimizer, learning rate and weight decay, as
    soon as the validation metrics have names: from the start, if the trainer checks validation
    first.

    Beside it lies ``report.html``, what ``python -m lit_gamma report`` makes of the run; where it
    cannot be written, a warning says why.

    Args:
        report: Whether to write it.

    Attributes:
        summary: What it says; empty until then.
        folder: The run's directory; None until then.
    """

    def __init__(self, report: bool = True) -> None:
        self.report = report
        self.summary: dict[str, Any] = {}
        self.folder: Path | None = None
        self._earlier_seconds = 0.0
        self._run: Run | None = None
        self._metrics: list[str] = []
        self._session_end: Any = None
        self._measured: dict[str, float] = {}
        self._measured_at: int | None = None
        self._validations: dict[int, dict[str, float]] = {}
        self._validation_of: int | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        callbacks = trajectory_callbacks(trainer)
        self._run = callbacks[0].run if callbacks else run_of(trainer, pl_module, [])
        self.summary = {}
        self._session_end = None
        if self._metrics:
            self._enter(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._validation_of = trainer.global_step

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = _validation_metrics(trainer)
        self._metrics = [name for name in measured if not name.endswith("perplexity")]
        if self._run is not None and not trainer.sanity_checking:
            self._measured, self._measured_at = measured, trainer.global_step
            self._validations[trainer.global_step] = measured
            self._enter(trainer)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is None and trainer.global_step:
            self._catch_up(trainer, pl_module)
        if not self.summary:  # Later than on_train_end, in which callbacks end their records.
            self._write(trainer, "finished")

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt):
            status = "interrupted"
        elif isinstance(exception, SIGTERMException):
            status = "terminated"
        else:
            status = f"{type(exception).__name__}: {exception}"
        self._write(trainer, status)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self._earlier_seconds + self._seconds(),
            "measured": self._measured,
            "measured_at": self._measured_at,
            "validations": self._validations,
            "validation_of": self._validation_of,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._earlier_seconds = state_dict["seconds"]
        self._measured = state_dict.get("measured", {})
        self._measured_at = state_dict.get("measured_at")
        self._validations = state_dict.get("validations", {})
        self._validation_of = state_dict.get("validation_of")

    def _seconds(self) -> float:
        """Seconds of this part of the run."""
        return 0.0 if self._run is None else self._run.seconds

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Completes what a run left that was stopped after its last step.

        Lightning trains no further then, tells callbacks nothing, and leaves a validation out.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            callback.on_train_start(trainer, pl_module)
        for recording in trajectory_callbacks(trainer):
            recording.file.began = 0  # So that the last step is one of this part.
        if trainer.global_step == self._validation_of != self._measured_at:
            validation = trainer.fit_loop.epoch_loop.val_loop
            trainer.validating, validation.restarting = True, False
            validation.run()
            trainer.training = True
        for callback in callbacks:
            callback.on_train_end(trainer, pl_module)

    def _write(self, trainer: Trainer, status: str) -> None:
        run = self._run
        if run is None or not run.writes:
            return
        run.step = trainer.global_step
        bill, whole = bill_of(run), self._earlier_seconds + run.seconds
        self.summary = summarize(run, status, whole, bill, self._measured, self._measured_at)
        self.summary["validations"] = self._validations
        self.folder = run.folder
        write_summary(run, self.summary)
        self._enter(trainer)
        if self._session_end is not None:
            self._tell(trainer, self._session_end)
        if self.report:
            _show(run)

    def _enter(self, trainer: Trainer) -> None:
        """Enters the run in TensorBoard's HParams: what sets it apart, and its metrics by name."""
        if self._session_end is not None:
            return
        assert self._run is not None
        with self._run.optional("the run's entry in TensorBoard's HParams", once="HParams"):
            known = _compared(trainer, self._run)
            *start, self._session_end = hparams(known, dict.fromkeys(self._metrics, 0.0))  # type: ignore[no-untyped-call]
            self._tell(trainer, *start)

    @staticmethod
    def _tell(trainer: Trainer, *summaries: Any) -> None:
        writer = tensorboard_writer(trainer)
        if writer is not None:
            for summary in summaries:
                writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]


def _compared(trainer: Trainer, run: Run) -> dict[str, Any]:
    """What sets a run apart, as values that HParams take."""
    named = ("gamma", "init_std", "init_from")
    known = {name: run.hyperparameters.get(name) for name in named} | {"seed": run.seed}
    trained = [optimizer for optimizer in trainer.optimizers if optimizer.param_groups]
    for optimizer in trained[:1]:
        group = optimizer.param_groups[0]
        known |= {
            "optimizer": type(optimizer).__name__,
            "lr": optimizer.defaults.get("lr"),
            "weight_decay": group.get("peak_weight_decay", group.get("weight_decay")),
        }
    plain = (bool, int, float, str)
    values = {k: v for k, v in jsonable(known).items() if v is not None}
    return {k: v if isinstance(v, plain) else str(v) for k, v in values.items()}


def _validation_metrics(trainer: Trainer) -> dict[str, float]:
    values = trainer.callback_metrics.items()
    return {name: float(value) for name, value in values if name.startswith("val/")}


def _show(run: Run) -> None:
    """Writes the run's page, which must not end training."""
    from lit_gamma.comparison.report import write_report

    path = run.folder / "report.html"
    with run.optional(str(path)):
        write_report([run.folder], path)
