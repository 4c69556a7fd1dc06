"""Evaluating a trained model by lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lit_gamma.errors import InputError
from lit_gamma.trained.checkpoint import Trained

_BOOTSTRAP = 1000
"""Resamplings for the standard error of a metric that has no formula for it."""


def evaluate(
    trained: Trained,
    tasks: Sequence[str],
    data_files: str | None = None,
    limit: int | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Runs tasks of lm-evaluation-harness on a model, in this process.

    Args:
        trained: The model.
        tasks: ``questions``, ``prontoqa``, ``prontoqa_generate`` (on a local file), tasks of
            lm-eval by name, or paths of its YAML files.
        data_files: The JSONL file that the first three read.
        limit: Only the first so many documents of each task; all by default.
        device: Where to run.

    Returns:
        lm-eval's own results: ``results`` has a mapping of metrics for each task.

    Raises:
        InputError: lm-eval is not installed, a task is not known or its data cannot be had.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    try:
        from lm_eval.evaluator import evaluate as run_tasks

        from lit_gamma.trained.harness import HarnessModel, load_tasks
    except ModuleNotFoundError as error:
        raise InputError(
            f'{error.name} is not installed, which evaluation needs: pip install "lit-gamma[eval]"'
        ) from error
    model = HarnessModel(trained, device)
    with isolate_rng():  # Loading draws names; simple_evaluate would even seed all generators.
        results: dict[str, Any] = run_tasks(
            model,
            load_tasks(tasks, data_files),
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            log_samples=False,
        )
    return results


def metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, float, float | None]]:
    """Yields the task, the name of the metric, its value and its standard error."""
    for task, found in results["results"].items():
        for key, value in found.items():
            name, _, way = key.partition(",")
            if way and not name.endswith("_stderr") and isinstance(value, (int, float)):
                error = found.get(f"{name}_stderr,{way}")
                shown = name if way == "none" else f"{name} ({way})"
                yield task, shown, value, error if isinstance(error, float) else None
