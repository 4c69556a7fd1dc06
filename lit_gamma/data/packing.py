"""A token stream cut into blocks without loss."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_gamma.data.prepared import Tokens


class TokenSequence(Protocol):
    """An array of token ids, or a part of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: npt.NDArray[np.int64], /) -> Tokens: ...


class Blocks(Dataset[dict[str, Tensor]]):
    """A token stream cut into blocks: every token but the first is a label exactly once.

    Args:
        tokens: The stream, shape (n_tokens,), at least two tokens.
        context_length: Tokens per block. The last block is filled up with end-of-text, whose
            labels are ignored (-100).
        end_of_text: The token that ends a document.
        mask_documents: Add ``document_ids`` to a batch, see :func:`document_ids`.
    """

    def __init__(
        self,
        tokens: TokenSequence,
        context_length: int,
        end_of_text: int = 256,
        mask_documents: bool = False,
    ) -> None:
        self.tokens = tokens
        self.context_length = context_length
        self.end_of_text = end_of_text
        self.mask_documents = mask_documents

    def __len__(self) -> int:
        return -(-(len(self.tokens) - 1) // self.context_length)

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the given int64 indices: ``input_ids`` and ``labels``."""
        at = index.numpy()[:, None] * self.context_length + np.arange(self.context_length + 1)
        beyond = at >= len(self.tokens)
        window = self.tokens[np.where(beyond, 0, at)].astype(np.int64)
        window[beyond] = self.end_of_text
        labels = window[:, 1:].copy()
        labels[beyond[:, 1:]] = -100
        return as_batch(window[:, :-1].copy(), labels, self.end_of_text, self.mask_documents)


def as_batch(
    input_ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], end: int, mask: bool
) -> dict[str, Tensor]:
    """``input_ids`` and ``labels``, int64, (batch, context_length); ``document_ids`` if masked."""
    batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    return batch | {"document_ids": document_ids(batch["input_ids"], end)} if mask else batch


def document_ids(input_ids: Tensor, end_of_text: int) -> Tensor:
    """Numbers the documents of each row, int64, same shape.

    The end-of-text token belongs to the document that follows it, as its beginning: what precedes
    it is predicted without the new document, and the new document from it alone.
    """
    return (input_ids == end_of_text).cumsum(1)


class Concatenated(Dataset[dict[str, Tensor]]):
    """Several sets of blocks as one, in their order.

    Args:
        parts: The sets, all of one context length.
    """

    def __init__(self, parts: list[Blocks]) -> None:
        self.parts = parts
        self.ends = torch.tensor([len(part) for part in parts]).cumsum(0)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the given int64 indices, in their order."""
        if len(self.parts) == 1:
            return self.parts[0][index]
        source = torch.bucketize(index, self.ends, right=True)
        rows, batches = [], []
        for i in torch.unique(source).tolist():
            chosen = (source == i).nonzero().flatten()
            first = int(self.ends[i]) - len(self.parts[i])
            rows.append(chosen)
            batches.append(self.parts[i][index[chosen] - first])
        order = torch.cat(rows).argsort()
        return {key: torch.cat([batch[key] for batch in batches])[order] for key in batches[0]}
