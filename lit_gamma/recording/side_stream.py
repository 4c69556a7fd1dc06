"""Where measurements run: beside training on an accelerator, in line with it on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Runs what is inside on a stream of its own, after everything queued so far.

    Training goes on beside it. What is read inside must not be written by later training steps:
    read copies, and hand them over with :func:`lend`. On a CPU it changes nothing.

    Args:
        device: The device of the tensors.
    """
    if device.type != "cuda":
        yield
        return
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield


def lend(tensor: Tensor) -> Tensor:
    """Keeps the memory of a copy made by training from being reused while the stream reads it."""
    if tensor.is_cuda:
        tensor.record_stream(_stream(tensor.device))
    return tensor


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
