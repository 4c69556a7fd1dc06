"""Several processes that train together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def on_ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """Runs ``work(rank, world, *arguments)`` on processes of a gloo group; all must succeed."""
    context = multiprocessing.get_context("fork")
    failures = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=_of_group, args=(rank, world, port, failures, work, arguments))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0] * world, failures.get() if not failures.empty() else codes


def _of_group(
    rank: int, world: int, port: int, failures: Any, work: Callable[..., None], arguments: Any
) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    try:
        work(rank, world, *arguments)
        dist.barrier()
    except BaseException:
        failures.put(traceback.format_exc())
        raise
    finally:
        dist.destroy_process_group()
