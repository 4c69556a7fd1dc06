"""The order of training batches: a function of seed and epoch, exact on resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler

_EPOCH_STRIDE = 1_000_003  # So that the second epoch of one seed is not the first of the next.


class ShuffledBatches(DistributedSampler[Any]):
    """Yields index tensors of shape (batch_size,) from a permutation of seed and epoch.

    A DistributedSampler, so that Lightning leaves it alone; every rank draws the same permutation
    and takes its own share of each global batch. The incomplete last batch of an epoch is dropped.
    The sampler counts the batches it has given, over all epochs, in ``position``, and goes on from
    there: the epoch that Lightning tells it is one or two too large after a resume at the end of an
    epoch.

    Args:
        n_samples: Size of the dataset.
        batch_size: Samples per batch and rank.
        seed: Seed of the permutation.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self, n_samples: int, batch_size: int, seed: int, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(range(n_samples), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.position = 0

    def __len__(self) -> int:
        return self.n_samples // (self.batch_size * self.num_replicas)

    def __iter__(self) -> Iterator[Tensor]:
        drawn, order = -1, torch.empty(0)
        for _ in range(len(self)):
            epoch, batch = divmod(self.position, len(self))
            if epoch != drawn:
                generator = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * epoch)
                drawn, order = epoch, torch.randperm(self.n_samples, generator=generator)
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            self.position += 1
            yield order[start : start + self.batch_size]


class ResumableDataModule(LightningDataModule):
    """A DataModule whose checkpoint knows how many batches were consumed."""

    _batches: ShuffledBatches | None = None
    _consumed = 0

    def shuffled_batches(self, n_samples: int, batch_size: int, seed: int) -> ShuffledBatches:
        """Makes the training sampler; after a resume it starts where the checkpoint was taken.

        Args:
            n_samples: Size of the training set.
            batch_size: Samples per batch and rank.
            seed: Seed of the order.

        Returns:
            The sampler, for ``DataLoader(dataset, sampler=..., batch_size=None)``.
        """
        ranks = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if self._batches is not None:
            self._consumed = self._batches.position
        self._batches = ShuffledBatches(n_samples, batch_size, seed, *ranks)
        self._batches.position = self._consumed
        return self._batches

    def state_dict(self) -> dict[str, Any]:
        """Lightning hook: the number of batches that training has consumed, over all epochs."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return {"consumed": progress.processed}  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning hook: see :meth:`state_dict`."""
        # Lightning cannot know that the order below resumes exactly.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        self._consumed = state_dict["consumed"]
        if self._batches is not None:
            self._batches.position = self._consumed
