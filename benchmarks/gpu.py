"""One card, eight minutes: is what the side stream records right and free of waits, and how fast?

    pip install greenlet && pip install --no-deps litgpt psutil
    python benchmarks/gpu.py --out gpu.json

Checks first, on a small model: values equal to those of a run without the side stream; no wait for
the device in a step that writes nothing; memory flat over 2,000 steps; compiled, in bf16-mixed
precision and under gradient accumulation the values that float64 gives of the weights. Then GPT-2
124M with 64k tokens a step: tokens per second and MFU of the bare loop, under Lightning, with the
default callbacks and with everything, beside litgpt and transformers, a turn of each at a time.

One JSON holds all of it; the exit code is 1 if a check failed. Needs no network. ``--rehearse``
runs every check on a CPU, where there is no stream, with a tiny model in place of GPT-2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import platform
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning
import numpy as np
import torch
from overhead import DEVICE, GPU, ROWS, VARIANTS, Batches, Row, bare, in_turns, module
from throughput import variants

from lit_gamma import TransformerConfig, neurons, trajectory
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    Schedule,
    TokenLoss,
    TrajectoryCallback,
    WeightNorms,
)
from lit_gamma.model.flops import flops_per_token, peak_flops

SMALL = Row(TransformerConfig(257, 64, 4, 4, 256), 16)
TINY = Row(TransformerConfig(65, 16, 2, 2, 32), 4)
STREAMED = (
    "recording.record_file", "recording.weights", "callbacks.weight_norms",
    "callbacks.effective_rank",
)  # fmt: skip
"""Modules that open the side stream."""

WARM = 20
"""Steps after which neither the budget nor an allocator warms up."""


def fit(folder: Path, steps: int, *more: lightning.Callback, **kwargs: Any) -> Any:
    """A fit of the small model with everything recorded in turn, and its tables."""
    row = TINY if not GPU else SMALL
    lightning.seed_everything(1, verbose=False)
    turns = Schedule(dense_until=3, per_decade=4)
    recorded = [
        Condensation(turns, 2.0, pictures=Schedule(every=10**9)),
        EffectiveRank(turns, 1.0, pictures=Schedule(every=10**9)),
        WeightNorms(),
        TokenLoss(),
    ]
    made = module(row)
    trainer = lightning.Trainer(
        accelerator=DEVICE.type, devices=1, max_steps=steps, gradient_clip_val=1.0, logger=False,
        default_root_dir=folder, callbacks=[*recorded, *more], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **kwargs,
    )  # fmt: skip
    trainer.fit(made, Batches(row, steps * kwargs.get("accumulate_grad_batches", 1)))
    return made, trajectory.load(folder)


def check_values_without_the_side_stream() -> dict[str, float]:
    """Largest relative difference of any quantity, by table."""
    tables = []
    for stream in (True, False):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
            if not stream:
                for name in STREAMED:
                    where, inline = f"lit_gamma.{name}.side_stream", contextlib.nullcontext()
                    patches.enter_context(mock.patch(where, return_value=inline))
            tables.append(fit(Path(folder), 200)[1])
    found = {}
    for name, table in tables[0].items():
        numbers = [c for c in table if table[c].dtype == np.float32]
        one, other = table[numbers].to_numpy(float), tables[1][name][numbers].to_numpy(float)
        apart = np.abs(one - other) / np.maximum(np.abs(other), 1e-6)
        found[name] = float(np.nanmax(apart))
    assert max(found.values()) < 1e-3, found  # Training itself repeats to some 1e-4 on a GPU.
    return found


def check_no_step_waits() -> dict[str, int]:
    """Steps in which a callback waited for the device although nothing was written."""
    waits: list[str] = []
    advance = TrajectoryCallback.advance

    def watched(callback: TrajectoryCallback) -> None:
        quiet = callback.run.step > WARM and not callback.file.ripe(callback.run.step + 1)
        if GPU and quiet:
            torch.cuda.set_sync_debug_mode("error")
        try:
            advance(callback)
        except RuntimeError as error:
            waits.append(f"{callback.name} at step {callback.run.step}: {error}")
        finally:
            if GPU:
                torch.cuda.set_sync_debug_mode("default")

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(TrajectoryCallback, "advance", watched),
    ):
        fit(Path(folder), 90)
    assert not waits, waits[:3]
    return {"waits": len(waits)}


class Memory(lightning.Callback):
    """Bytes allocated after each step."""

    def __init__(self) -> None:
        self.allocated: list[int] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.allocated.append(torch.cuda.memory_allocated() if GPU else 0)


def check_memory_is_flat() -> dict[str, float]:
    """MiB allocated at most in steps 200 to 400, and in the last 200 of 2,000."""
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        fit(Path(folder), 2000 if GPU else 450, memory)
    early, late = max(memory.allocated[200:400]) / 2**20, max(memory.allocated[-200:]) / 2**20
    assert late <= 1.02 * early + 1, (early, late)
    return {"steps 200 to 400": early, "last 200": late}


def check_modes() -> dict[str, float]:
    """Largest relative error at the last step, by mode of training."""
    found = {}
    for name, kwargs in {
        "float32": {},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "accumulation": {"accumulate_grad_batches": 3},
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            made, tables = fit(Path(folder), 40, **kwargs)
        last = tables["weight_norms"][tables["weight_norms"]["step"] == 40]
        errors = [
            abs(row[quantity] / value - 1)
            for row, matrix in zip(last.to_dict("records"), neurons(made), strict=True)
            for quantity, value in in_float64(matrix.weight).items()
        ]
        found[name] = max(errors)
    assert max(found.values()) < 1e-4, found
    return found


def in_float64(weight: torch.Tensor) -> dict[str, float]:
    """Three quantities of a matrix, on the host."""
    w = weight.detach().double().cpu()
    s = torch.linalg.svdvals(w)
    unit = w / w.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    pairs = len(w) * (len(w) - 1)
    return {
        "mean_squared_cosine": ((cosines**2).sum() - len(w)).item() / pairs,
        "participation_ratio": ((s**2).sum() ** 2 / (s**4).sum()).item(),
        "frobenius_norm": w.norm().item(),
    }


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "values": check_values_without_the_side_stream,
    "waits": check_no_step_waits,
    "memory": check_memory_is_flat,
    "modes": check_modes,
}


def speeds(steps: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Tokens per second and MFU of every variant; a turn of each at a time."""
    row = ROWS["gpt2"] if GPU else TINY
    everything = partial(VARIANTS["everything exact"], row, steps, steps)
    runs = {**variants(row, steps, steps), "lit-gamma, everything": everything}
    in_turns({"warm-up": lambda: bare(row, 2, 2)}, 0, 2)
    tokens = row.batch_size * row.transformer.context_length
    flops = flops_per_token(module(row).transformer, row.transformer.context_length)
    peak = peak_flops(DEVICE, "bf16-mixed") if GPU else None
    for name, cost in in_turns(runs, steps // 3, steps).items():
        speed = 1e3 * tokens / cost.ms
        said = {"tokens_per_second": speed, "ms_per_step": cost.ms, "own_bill_ms": cost.bill}
        yield name, said if peak is None else {**said, "mfu": speed * flops / peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="gpu.json")
    parser.add_argument("--steps", type=int, default=60, help="of each variant of GPT-2")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with a tiny model")
    args = parser.parse_args()
    if not GPU and not args.rehearse:
        sys.exit("no CUDA device: nothing was run; --rehearse runs the checks on a CPU")
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    name = torch.cuda.get_device_name() if GPU else platform.machine()
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "checks": {}}
    for what, check in CHECKS.items():
        try:
            found["checks"][what] = {"passed": True, **check()}
        except Exception as error:
            traceback.print_exc()
            found["checks"][what] = {"passed": False, "error": f"{type(error).__name__}: {error}"}
        print(what, found["checks"][what], flush=True)
    found["speeds"] = dict(speeds(args.steps))
    for variant, said in found["speeds"].items():
        print(variant, said)
    Path(args.out).write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(0 if all(check["passed"] for check in found["checks"].values()) else 1)


if __name__ == "__main__":
    main()
