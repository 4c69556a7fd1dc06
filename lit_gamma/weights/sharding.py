"""Cutting and filling sharded parameters (DTensor) without a communication too many."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate, distribute_tensor


def padded(tensor: DTensor) -> Tensor:
    """A tensor of the whole shape that holds this rank's shard, and zeros elsewhere.

    No communication: a cut of it is the same cut of the whole, less what other ranks hold.
    """
    out = torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    for chunk in tensor.__create_chunk_list__():  # type: ignore[no-untyped-call]
        span = zip(chunk.offsets, chunk.sizes, strict=True)
        out[tuple(slice(start, start + size) for start, size in span)] = tensor.to_local()
    return out


def summed(local: Tensor, like: DTensor) -> DTensor:
    """A DTensor whose ``full_tensor()`` is the sum of ``local`` over the shards of ``like``."""
    placements = [Replicate() if p.is_replicate() else Partial() for p in like.placements]
    return DTensor.from_local(local, like.device_mesh, placements, run_check=False)


def fill(parameter: Tensor, values: Tensor) -> None:
    """Writes a whole tensor to a parameter, sharded or not; of a sharded one, rank 0's values."""
    if isinstance(parameter, DTensor):
        values = values.to(parameter.device)
        parameter.copy_(distribute_tensor(values, parameter.device_mesh, parameter.placements))
    else:
        parameter.copy_(values)


def all_finite(module: nn.Module) -> bool:
    """Whether every parameter, or this rank's shard of it, is finite; waits for the device."""
    parameters = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
    return all(bool(parameter.isfinite().all()) for parameter in parameters)
