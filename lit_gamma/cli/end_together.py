"""Several processes that are told to end do so after the same step."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from typing_extensions import override


class EndTogether(Callback):
    """Ends all processes after the same step, once SIGINT or SIGTERM has reached any of them.

    Each would end where it is otherwise, and wait for the others in what they never come to: the
    last checkpoint. They agree on it a step late, so that no step waits for the device. One process
    alone ends as Lightning has it.
    """

    def __init__(self) -> None:
        self._told = self._step = 0
        self._agreed: tuple[Tensor, torch.cuda.Event | None] | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told, self._step, self._agreed = 0, trainer.global_step, None
        if _are_several():  # Lightning puts back at its end what was there before it.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._tell)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step or not _are_several():
            return
        self._step = trainer.global_step
        before, self._agreed = self._agreed, _largest(self._told, trainer.strategy.root_device)
        if before is None:
            return
        number, copied = before
        if copied is not None:
            copied.synchronize()
        if int(number):
            raise KeyboardInterrupt if number == signal.SIGINT else SIGTERMException

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = self._told or number


def leave(status: int) -> None:
    """Ends this process if it is one of several, without taking Python down first.

    A thread of gloo may let go of a collective's tensors later than all else has ended. It asks for
    the interpreter to do so, and aborts the process if that is being taken down
    (pytorch/pytorch#179291). To destroy the process groups does not end such threads: caches of
    DTensor keep the groups.
    """
    if _are_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _largest(value: int, device: torch.device) -> tuple[Tensor, torch.cuda.Event | None]:
    """Of all processes, on the host once the event has come; nothing waits for it here."""
    found = torch.full((), value, dtype=torch.int32, device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    host = found.to("cpu", non_blocking=True)
    if device.type != "cuda":
        return host, None
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record()
    return host, copied


def _are_several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
