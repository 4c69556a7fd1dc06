"""The order of training batches: a function of seed and epoch, exact on resume."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler
from typing_extensions import override

from lit_gamma.errors import InputError

_EPOCH_STRIDE = 1_000_003  # So that the second epoch of one seed is not the first of the next.


class ShuffledBatches(DistributedSampler[Any], SequentialSampler):
    """Yields index tensors of shape (batch_size,) from a permutation of seed and epoch.

    A DistributedSampler, and by name a SequentialSampler, so that Lightning leaves it alone, with
    ``overfit_batches`` as well; every rank draws the same permutation and takes its own share of
    each global batch. The incomplete last batch of an epoch is dropped. The sampler counts the
    batches it has given, over all epochs, in ``position``, and goes on from there: the epoch that
    Lightning tells it is one or two too large after a resume at the end of an epoch.

    Args:
        n_samples: Size of the dataset.
        batch_size: Samples per batch and rank.
        seed: Seed of the permutation.
        num_replicas: Number of ranks.
        rank: This rank.

    Attributes:
        overfits: Whether each epoch begins with the first batches of all.
    """

    overfits = False

    def __init__(
        self, n_samples: int, batch_size: int, seed: int, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(range(n_samples), num_replicas, rank, seed=seed)  # type: ignore[arg-type]
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.position = 0

    @property
    def global_size(self) -> int:
        """Samples per batch of all ranks together."""
        return self.batch_size * self.num_replicas

    def __len__(self) -> int:
        return self.n_samples // self.global_size

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        drawn, order = -1, torch.empty(0)
        if self.overfits:
            self.position = 0
        for _ in range(len(self)):
            epoch, batch = divmod(self.position, len(self))
            if epoch != drawn:
                drawn, order = epoch, self.order(epoch)
            start = (batch * self.num_replicas + self.rank) * self.batch_size
            self.position += 1
            yield order[start : start + self.batch_size]

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, all ranks together; int64."""
        generator = torch.Generator().manual_seed(self.seed + _EPOCH_STRIDE * epoch)
        return torch.randperm(self.n_samples, generator=generator)


class InOrder(DistributedSampler[Any], SequentialSampler):
    """Yields index tensors as they come, also where Lightning would put another order in place."""

    def __init__(self, batches: Sequence[Tensor]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:  # type: ignore[override]
        return iter(self.batches)


class MixedBatches(ShuffledBatches):
    """Batches of several sources, each with a fixed share of every epoch.

    A source is gone through in permutations of its own, one after the other across the epochs: its
    every sample is seen before one is seen again.

    Args:
        sizes: Samples of each source; an epoch has as many as all together.
        weights: Share of each source, in any unit.
        batch_size: Samples per batch and rank.
        seed: Seed of the order.
        num_replicas: Number of ranks.
        rank: This rank.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(sum(sizes), batch_size, seed, num_replicas, rank)
        self.sizes = sizes
        self.shares = shares(self.n_samples, weights)

    def order(self, epoch: int) -> Tensor:
        """The samples of an epoch, all ranks together; int64, numbered source after source."""
        parts, first = [], 0
        for source, (size, share) in enumerate(zip(self.sizes, self.shares, strict=True)):
            begin, end = epoch * share, (epoch + 1) * share
            passes = range(begin // size, -(-end // size))
            drawn = [self._permutation(source, size, i) for i in passes]
            if drawn:
                skipped = begin - passes[0] * size
                parts.append(first + torch.cat(drawn)[skipped : skipped + share])
            first += size
        return torch.cat(parts)[super().order(epoch)]

    def _permutation(self, source: int, size: int, i: int) -> Tensor:
        state = np.random.SeedSequence([self.seed, source, i]).generate_state(1, np.uint64)
        return torch.randperm(size, generator=torch.Generator().manual_seed(int(state[0]) >> 1))


def shares(n: int, weights: Sequence[float]) -> list[int]:
    """Divides n among weights; the largest remainders are rounded up."""
    exact = [n * weight / sum(weights) for weight in weights]
    whole = [int(x) for x in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_remainder[: n - sum(whole)]:
        whole[i] += 1
    return whole


class ResumableDataModule(LightningDataModule):
    """A DataModule whose checkpoint knows how many batches were consumed."""

    _batches: ShuffledBatches | None = None
    _consumed = 0
    _consumed_size: int | None = None

    @property
    def ranks(self) -> tuple[int, int]:
        """Number of ranks, and this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def shuffled_batches(self, n_samples: int, batch_size: int, seed: int) -> ShuffledBatches:
        """Makes the training sampler; after a resume it starts where the checkpoint was taken.

        Args:
            n_samples: Size of the training set.
            batch_size: Samples per batch and rank.
            seed: Seed of the order.

        Returns:
            The sampler, for ``DataLoader(dataset, sampler=..., batch_size=None)``.
        """
        return self.resumed(ShuffledBatches(n_samples, batch_size, seed, *self.ranks))

    @property
    def overfits(self) -> bool:
        """Whether the trainer wants the same few batches again and again."""
        return bool(getattr(self.trainer, "overfit_batches", 0))

    def in_order(self, n_samples: int, batch_size: int | None = None) -> Sequence[Tensor] | InOrder:
        """Makes a validation sampler: the samples as they come; in one batch without a size."""
        batches = torch.split(torch.arange(n_samples), batch_size or n_samples)
        return InOrder(batches) if self.overfits else batches

    def resumed(self, batches: ShuffledBatches) -> ShuffledBatches:
        """Sets a training sampler to where the one before, or the checkpoint, left off."""
        if self._batches is not None:
            self._consumed, self._consumed_size = self._batches.position, self._batches.global_size
        self._batches = batches
        self._batches.overfits = self.overfits
        self._batches.position = self._consumed_in(batches)
        return self._batches

    def _consumed_in(self, batches: ShuffledBatches) -> int:
        """The batches consumed, in batches of the size of now.

        Raises:
            InputError: Training would have to go on in the middle of a batch.
        """
        before, now = self._consumed_size or batches.global_size, batches.global_size
        if before == now:
            return self._consumed
        epoch, done = divmod(self._consumed, batches.n_samples // before)
        position, rest = divmod(done * before, now)
        if rest:
            raise InputError(
                f"the checkpoint was taken after {done * before} sequences of an epoch, in batches "
                f"of {before} over all processes, and cannot go on in batches of {now}, which do "
                "not divide that: resume with the batch size and the processes of before"
            )
        return epoch * len(batches) + position

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that training has consumed, over all epochs, and their size."""
        assert self.trainer is not None
        progress = self.trainer.fit_loop.epoch_loop.batch_progress.total
        size = None if self._batches is None else self._batches.global_size
        return {"consumed": progress.processed, "global_size": size}  # type: ignore[attr-defined]

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Lightning cannot know that the order below resumes exactly.
        warnings.filterwarnings("ignore", ".*your dataloader is not resumable.*")
        self._consumed = state_dict["consumed"]
        self._consumed_size = state_dict.get("global_size")
        if self._batches is not None:
            self._batches.position = self._consumed_in(self._batches)
