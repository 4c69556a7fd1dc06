"""One forward of a fixed batch that leaves no trace.

Watchers are opened around the forward: ``with undisturbed(module), watched_norms(module) as seen``,
see :mod:`lit_gamma.probing.norms` and :mod:`lit_gamma.probing.attention`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics import Metric

from lit_gamma.errors import InputError

Forward = Callable[[Any, Any], Any]
"""Runs a batch through a module: called with both."""


@dataclass(frozen=True)
class Seen:
    """What one layer did in one call.

    Attributes:
        path: Path of the layer in the module.
        values: Quantities, all of one shape: (), or (heads,); and what only ``settle`` takes.
        shape: Shape of the matrix that they are of, where there is one.
    """

    path: str
    values: Mapping[str, Tensor]
    shape: tuple[int, ...] = ()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in arguments or outputs, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(part)


def plain_forward(module: nn.Module, batch: Any) -> Any:
    """Runs a batch as training would: a LightningModule's ``training_step``, or the module itself.

    Args:
        module: Any module.
        batch: Keyword arguments of a plain module as a mapping, positional ones as a list or tuple,
            or the only argument.

    Returns:
        Whatever that returns.

    Raises:
        InputError: The module optimizes by hand, so its training_step would train.
    """
    if isinstance(module, LightningModule):
        if not module.automatic_optimization:
            raise InputError(
                f"the training_step of {type(module).__name__} optimizes by hand, so a probe batch "
                "cannot be run through it; give forward=, a function of the module and the batch"
            )
        return module.training_step(batch, 0)
    if isinstance(batch, Mapping):
        return module(**batch)
    return module(*batch) if isinstance(batch, (list, tuple)) else module(batch)


def first_samples(batch: Any, n: int) -> Any:
    """Copies the first samples of a batch.

    Args:
        batch: A tensor, or a collection of them; those as long as the first are cut.
        n: How many samples.
    """
    sizes: list[int] = []
    apply_to_collection(batch, Tensor, lambda x: sizes.append(x.shape[0] if x.ndim else 0))

    def start(x: Tensor) -> Tensor:
        return (x[:n] if x.ndim and x.shape[0] == sizes[0] else x).clone()

    return apply_to_collection(batch, Tensor, start)


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, compilation and logging; everything is as before after.

    Random number generators, buffers, torchmetrics, the training mode of each submodule and FSDP's
    shards are put back. What a module does besides, such as appending to a list of its own, is not.

    Args:
        module: The module whose forward is run inside.
    """
    modes = {part: part.training for part in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    states = [(part, _state(part)) for part in modes if isinstance(part, Metric)]
    silent = [part for part in modes if isinstance(part, LightningModule)]
    module.eval()
    for quiet in silent:
        quiet.__dict__["log"] = _log_nothing
    try:
        with isolate_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for part, training in modes.items():
            part.training = training
            if isinstance(part, FSDPModule):
                part.reshard()
        for quiet in silent:
            del quiet.__dict__["log"]
        for buffer, value in buffers:
            buffer.detach().copy_(value)
        for metric, state in states:
            for name, value in state.items():
                setattr(metric, name, value)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for LightningModule.log."""


def _state(metric: Metric) -> dict[str, Any]:
    kept = {"_update_count": metric._update_count, "_computed": metric._computed}
    return {**copy.deepcopy(metric.metric_state), **kept}
