"""The summary of a run: one JSON file at the end, however it ends."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn

from lit_gamma import trajectory
from lit_gamma.recording.callback import tensorboard_writer, trajectory_callbacks
from lit_gamma.recording.weights import WeightTrajectory
from lit_gamma.trajectory.phase_finding import phases_of_roles
from lit_gamma.trajectory.tensorboard import write_phases


class RunSummary(Callback):
    """Writes ``summary.json`` in the run's directory at the end of fit, also after an interrupt.

    It holds gamma, seed, status (``finished``, ``interrupted`` or the error), optimizer steps,
    seconds of training (all parts of a resumed run), the validation metrics by name as last
    measured, what each trajectory callback cost (host time per step, and as a share of a step
    without them) with the number of matrices that took turns at each step, and per role the step
    and value of the strongest condensation and of the lowest effective rank, both ÷ null, and the
    ``phases``, see :func:`lit_gamma.trajectory.phases` (null: none, or an open end). TensorBoard
    has these as Text.
    TensorBoard's HParams compare runs by gamma, seed, learning rate and weight decay; the metrics
    are ``hp/<metric>`` there.

    Attributes:
        path: The file; None until it is written.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._earlier_seconds = 0.0
        self._start: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._start, self._start_step = time.monotonic(), trainer.global_step
        # Asking for log_dir is a collective call, which only here all ranks make.
        self._run_dir = Path(trainer.log_dir or trainer.default_root_dir)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the summary of a finished run."""
        self._write(trainer, pl_module, "finished")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Writes the summary of a run that was cut short."""
        interrupted = isinstance(exception, KeyboardInterrupt)
        status = "interrupted" if interrupted else f"{type(exception).__name__}: {exception}"
        self._write(trainer, pl_module, status)

    def state_dict(self) -> dict[str, Any]:
        """Lightning hook: the seconds so far."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning hook: see :meth:`state_dict`."""
        self._earlier_seconds = state_dict["seconds"]

    def _seconds(self) -> float:
        running = 0.0 if self._start is None else time.monotonic() - self._start
        return self._earlier_seconds + running

    def _overhead(self, trainer: Trainer) -> dict[str, dict[str, float | None]]:
        """What each callback cost, in this part of a resumed run."""
        assert self._start is not None
        callbacks = trajectory_callbacks(trainer)
        training = time.monotonic() - self._start - sum(c.seconds for c in callbacks)
        steps = max(1, trainer.global_step - self._start_step)
        return {
            c.name: {
                "ms_per_step": round(c.seconds * 1e3 / steps, 3),
                "share_of_step": round(c.seconds / training, 4),
                **(
                    {"matrices_per_step": c.matrices_per_step}
                    if isinstance(c, WeightTrajectory)
                    else {}
                ),
            }
            for c in callbacks
        }

    def _write(self, trainer: Trainer, pl_module: LightningModule, status: str) -> None:
        if self._start is None or not trainer.is_global_zero:
            return
        run_dir = self._run_dir
        for callback in trajectory_callbacks(trainer):
            callback.flush()
        recorded = any(run_dir.glob("trajectory/*.arrow"))
        seed = os.environ.get("PL_GLOBAL_SEED")
        metrics = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        tables = trajectory.load(run_dir, ("condensation", "effective_rank")) if recorded else {}
        summary = {
            "status": status,
            "gamma": pl_module.hparams.get("gamma"),
            "seed": None if seed is None else int(seed),
            "steps": trainer.global_step,
            "seconds": round(self._seconds(), 2),
            "metrics": metrics,
            "overhead": self._overhead(trainer),
            **(trajectory.extremes(tables) if recorded else {}),
        }
        if tables:
            phases = phases_of_roles(tables)
            summary["phases"] = _nested(phases)
            write_phases(tensorboard_writer(trainer), phases, trainer.global_step)
        draft = run_dir / "summary.json.tmp"
        try:
            draft.write_text(json.dumps(summary, indent=2) + "\n")
            os.replace(draft, run_dir / "summary.json")
            self.path = run_dir / "summary.json"
        except OSError as error:
            rank_zero_warn(f"{run_dir}/summary.json cannot be written ({error})")
        self._compare(trainer, summary)

    @staticmethod
    def _compare(trainer: Trainer, summary: dict[str, Any]) -> None:
        """Enters the run in TensorBoard's HParams."""
        optimizer = trainer.optimizers[0]
        compared = {
            "gamma": summary["gamma"],
            "seed": summary["seed"],
            "lr": optimizer.defaults["lr"],
            "weight_decay": optimizer.param_groups[0].get("weight_decay"),
        }
        metrics = summary["metrics"].items()
        shown = {f"hp/{name}": v for name, v in metrics if not name.endswith("perplexity")}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(compared, shown)


def _nested(phases: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Role to quantity to the steps of its phases."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in phases.to_dict("records"):
        steps = {str(k): v for k, v in row.items() if k not in ("role", "quantity")}
        finite = {k: v if math.isfinite(v) else None for k, v in steps.items()}
        found.setdefault(row["role"], {})[row["quantity"]] = finite
    return found
