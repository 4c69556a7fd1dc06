"""A fixed set of validation blocks, and the loss of their tokens with less context."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_gamma.batch import IGNORED
from lit_gamma.errors import InputError

MOST_BATCHES = 1000
"""Batches of a validation set that are read to choose from."""

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class ProbeSet:
    """Blocks whose tokens are followed through a run.

    Attributes:
        batch: ``input_ids``, ``labels`` and what else a loader gives, each (n_blocks, length). A
            label stands where it is predicted.
        sets: Name of the validation set that each block is from.
        blocks: Place of each block in its set.
    """

    batch: Batch
    sets: list[str]
    blocks: list[int]

    @property
    def labelled(self) -> Tensor:
        """Which positions have a label: bool, (n_blocks, length); they are the tokens, in order."""
        return self.batch["labels"] != IGNORED

    @property
    def digest(self) -> str:
        """SHA-256 of the token ids and labels (int64, little-endian), hexadecimal."""
        digest = hashlib.sha256()
        for name in ("input_ids", "labels"):
            digest.update(self.batch[name].cpu().numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def windows(self, n: int) -> Tensor:
        """Each token with the n - 1 before it, -1 where there is none: int64, (n_tokens, n)."""
        before = F.pad(self.batch["input_ids"], (n - 2, 0), value=-1).unfold(1, n - 1, 1)
        with_label = torch.cat([before, self.batch["labels"].unsqueeze(2)], dim=2)
        return with_label[self.labelled].cpu()


def choose_blocks(loaders: Mapping[str, Iterable[Any]], n_blocks: int, seed: int) -> ProbeSet:
    """Chooses validation blocks at random, equally many of each set.

    Args:
        loaders: Validation sets by name; the first :data:`MOST_BATCHES` batches are read.
        n_blocks: Blocks in all; a set with fewer than its share gives all it has.
        seed: Seed of the choice.

    Returns:
        The blocks, in the order of the sets and of their places there, on the CPU.

    Raises:
        InputError: There is no set, or its batches are not of the form above.
    """
    shares = torch.tensor_split(torch.arange(n_blocks), max(1, len(loaders)))
    drawn = [
        _drawn(name, loader, len(share), np.random.default_rng([seed, i]))
        for i, ((name, loader), share) in enumerate(zip(loaders.items(), shares, strict=True))
        if len(share)
    ]
    lengths = {rows["labels"].shape[1] for _, rows in drawn}
    if len(lengths) != 1:
        raise InputError(f"a probe needs blocks of one length, the validation sets have {lengths}")
    return ProbeSet(
        {key: torch.cat([rows[key] for _, rows in drawn]) for key in drawn[0][1]},
        [name for name, (places, _) in zip(loaders, drawn, strict=False) for _ in places],
        [int(place) for places, _ in drawn for place in places],
    )


def _drawn(
    name: str, loader: Iterable[Any], n: int, generator: np.random.Generator
) -> tuple[Tensor, Batch]:
    """Draws n blocks, all equally likely, in their order; holds no more than these and a batch."""
    keys, places, rows, n_seen = torch.empty(0), torch.empty(0, dtype=torch.int64), Batch(), 0
    for batch in islice(loader, MOST_BATCHES):
        fresh = _checked(name, batch)
        size = len(fresh["labels"])
        keys = torch.cat([keys, torch.from_numpy(generator.random(size))])
        places = torch.cat([places, torch.arange(n_seen, n_seen + size)])
        rows = {k: torch.cat([rows[k], v]) for k, v in fresh.items()} if rows else fresh
        kept = keys.argsort()[:n].sort().values
        keys, places, rows = keys[kept], places[kept], {k: v[kept] for k, v in rows.items()}
        n_seen += size
    if not rows:
        raise InputError(f"the validation set {name} is empty, so there is nothing to probe")
    return places, rows


def _checked(name: str, batch: Any) -> Batch:
    tensors = {k: v for k, v in batch.items() if isinstance(v, Tensor)} if _named(batch) else {}
    shape = tensors["labels"].shape if "labels" in tensors else ()
    if len(shape) != 2 or any(tensor.shape != shape for tensor in tensors.values()):
        found = {k: tuple(v.shape) for k, v in tensors.items()} or type(batch).__name__
        raise InputError(
            f"a probe needs batches with input_ids and labels of shape (batch, length); the "
            f"validation set {name} gives {found}"
        )
    return {k: v.cpu() for k, v in tensors.items()}


def _named(batch: Any) -> bool:
    return isinstance(batch, Mapping) and {"input_ids", "labels"} <= batch.keys()


def truncated_loss(run: Callable[[Batch], Tensor], batch: Batch, context: int) -> Tensor:
    """The loss of each token when only the last tokens before it are seen.

    Runs windows of ``context`` tokens, each half a window after the one before, and takes the loss
    of the later half of each: two forwards of the batch, for any context. What comes after a window
    cannot matter to a causal model, positions begin anew in it.

    Args:
        run: Gives the loss of every token of a batch, (batch, length), NaN without a label.
        batch: Tensors of shape (n_blocks, length).
        context: Most tokens that are seen, a power of two, less than length. At least half as many
            and one are, except at the beginning of a block.

    Returns:
        Shape (n_blocks, length).
    """
    n_blocks, length = batch["labels"].shape
    half = context // 2
    stride = max(1, half)
    fill = -length % stride
    windows = {
        key: F.pad(rows, (0, fill), value=IGNORED if key == "labels" else 0)
        .unfold(1, context, stride)
        .flatten(0, 1)
        for key, rows in batch.items()
    }
    loss = run(windows).view(n_blocks, -1, context)
    return torch.cat([loss[:, 0, :half], loss[:, :, half:].flatten(1)], dim=1)[:, :length]
