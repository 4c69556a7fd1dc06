"""Tasks that are generated, as a DataModule: one training set, and validation sets by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from lit_gamma.data.sampler import ResumableDataModule


class GeneratedTask(ResumableDataModule):
    """Serves what a subclass generates in ``setup``.

    Attributes:
        train_set: The training samples; indexed by a batch's int64 indices, as the others are.
        val_sets: The validation samples by name.
        n_train: Training samples per epoch.
        n_val: Samples per validation set.
        batch_size: Samples per batch.
        seed: Seed of the samples and their order.
    """

    train_set: Any
    val_sets: Mapping[str, Any]
    n_train: int
    n_val: int
    batch_size: int
    seed: int

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of training samples."""
        order = self.shuffled_batches(self.n_train, self.batch_size, self.seed)
        return DataLoader(self.train_set, sampler=order, batch_size=None)

    def val_dataloader(self) -> dict[str, DataLoader[dict[str, Tensor]]]:
        """The validation sets by name, each as one batch."""
        return {
            name: DataLoader(val_set, sampler=self.in_order(len(val_set)), batch_size=None)
            for name, val_set in self.val_sets.items()
        }

    test_dataloader = val_dataloader

    def no_batch(self) -> str | None:
        """What is wrong if the samples fill no batch; None if they do."""
        if self.batch_size < 1 or self.n_val < 1 or self.n_train < self.batch_size:
            return (
                f"n_train {self.n_train} and n_val {self.n_val} do not fill "
                f"one batch of batch_size {self.batch_size}"
            )
        return None
