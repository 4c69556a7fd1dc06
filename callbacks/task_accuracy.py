"""Tasks of lm-evaluation-harness while a model trains: what does it know by now?"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lit_gamma import InputError, LanguageModel
from lit_gamma.callbacks import Quantity, Schedule, TrajectoryCallback
from lit_gamma.recording.described import TokenizedText
from lit_gamma.trained import Trained, evaluate
from lit_gamma.trained.evaluation import metrics


class TaskAccuracy(TrajectoryCallback):
    """Records the metrics of lm-eval's tasks, see ``lit_gamma.trained.evaluate``.

    Needs ``pip install "lit-gamma[eval]"``, a :class:`LanguageModel`, and data with a tokenizer.
    Logged as ``1_task_accuracy/<task>_<metric>``, a column each.

    Args:
        tasks: The names of the tasks.
        data_files: The JSONL file that tasks of our own read.
        limit: Only the first so many documents of each task are asked.
        schedule: The steps to record; by default every 1,000 and two per factor of ten.
    """

    default_schedule = Schedule(every=1000, per_decade=2)
    section = "1"

    def __init__(
        self,
        tasks: Sequence[str],
        data_files: str | None = None,
        limit: int = 200,
        schedule: Schedule | None = None,
    ) -> None:
        super().__init__(schedule)
        self.tasks = list(tasks)
        self.data_files = data_files
        self.limit = limit

    def start(self, run: Any) -> None:
        """Asks once, which tells the metrics that the tasks have."""
        if not isinstance(run.module, LanguageModel) or not isinstance(run.data, TokenizedText):
            raise InputError(
                f"TaskAccuracy asks a LanguageModel that trains on text, not a "
                f"{type(run.module).__name__} on {type(run.data).__name__}; leave the callback out"
            )
        self._newest: tuple[int, dict[str, Tensor]] = (-1, {})
        self.quantities = tuple(
            Quantity(name, f"{name.replace('_', ' ')} of lm-eval", chart="tasks")
            for name in self.observe(run.trainer, run.module)
        )
        super().start(run)

    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        """Runs the tasks on the current weights."""
        if self._newest[0] != self.run.step:
            model = Trained(pl_module.transformer, {}, self.run.data.tokenizer)
            device = self.run.device
            with self.run.probing(), contextlib.redirect_stderr(io.StringIO()):  # lm-eval's bars.
                found = evaluate(model, self.tasks, self.data_files, self.limit, device)
            values = {
                re.sub(r"\W+", "_", f"{task} {metric}").strip("_"): torch.tensor([float(value)])
                for task, metric, value, _ in metrics(found)
            }
            self._newest = self.run.step, values
        return self._newest[1]
