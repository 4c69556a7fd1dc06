"""Text that is read as training goes on, for corpora that no disk should hold."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from lit_gamma.data.documents import Piece, checked
from lit_gamma.data.packing import as_batch
from lit_gamma.data.sampler import shares
from lit_gamma.data.source import Documents
from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError

if TYPE_CHECKING:
    import datasets

WINDOW = 1024
"""Blocks that are read ahead and shuffled together."""

Blocks = npt.NDArray[np.int64]


def held_out(text: str, fraction: float) -> bool:
    """Whether a document is kept for validation: by its content, wherever it comes in the order."""
    return zlib.crc32(text.encode()) < fraction * 2**32


def held_out_documents(documents: Documents, fraction: float, n: int) -> Iterator[Piece]:
    """The first n documents that are kept for validation."""
    texts = (checked(row[documents.field], "a row", documents.field) for row in documents.stream())
    return islice(((text, True) for text in texts if held_out(text, fraction)), n)


class DocumentStream:
    """The endless tokens of one source on one rank.

    Args:
        documents: Where the text comes from.
        tokenizer: Encodes it; an end-of-text token follows each document.
        val_fraction: Share of the documents that is left out.
        seed: Seed of the order of the shards, which also depends on the epoch.
        ranks: Number of ranks, and this one; each reads documents of its own.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Tokenizer,
        val_fraction: float,
        seed: int,
        ranks: tuple[int, int],
    ) -> None:
        from datasets.distributed import split_dataset_by_node

        self.field = documents.field
        self.tokenizer = tokenizer
        self.val_fraction = val_fraction
        # A buffer of one: shards come in a new order, documents in that of their shard. Larger
        # buffers could not be resumed exactly.
        rows = documents.stream().shuffle(seed, buffer_size=1)
        self.rows: datasets.IterableDataset = split_dataset_by_node(rows, ranks[1], ranks[0])
        self.epoch = 0
        self._unused: Blocks = np.empty(0, np.int64)
        self._iterator: Iterator[dict[str, Any]] | None = None

    def blocks(self, n: int, context_length: int) -> Blocks:
        """The next n blocks and the token after each, shape (n, context_length + 1)."""
        needed = n * context_length + 1
        parts = [self._unused]
        length = len(self._unused)
        while length < needed:
            parts.append(self._encoded(self._documents()))
            length += len(parts[-1])
        tokens = np.concatenate(parts)
        self._unused = tokens[needed - 1 :]
        starts = np.arange(n)[:, None] * context_length
        return np.take(tokens, starts + np.arange(context_length + 1))

    def _encoded(self, texts: list[str]) -> Blocks:
        end = [self.tokenizer.end_of_text]
        kept = [text for text in texts if not held_out(text, self.val_fraction)]
        encoded = self.tokenizer.encode(kept)
        return np.concatenate([np.empty(0, np.int64), *(t for e in encoded for t in (e, end))])

    def _documents(self) -> list[str]:
        """Some more documents; after the last the first come again, in the next epoch's order."""
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.rows)
            texts = [row[self.field] for row in islice(self._iterator, 64)]
            if texts:
                return [checked(text, "a row", self.field) for text in texts]
            self.epoch += 1
            self.rows.set_epoch(self.epoch)
            self._iterator = None
        raise InputError("data: a streamed source holds no documents for one of the processes")

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: after the blocks that were taken."""
        unused = torch.from_numpy(self._unused.copy())
        return {"epoch": self.epoch, "rows": self.rows.state_dict(), "unused": unused}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        # The buffer of one is empty between two documents, so that nothing is refilled.
        logger = logging.getLogger("datasets.iterable_dataset")
        logger.addFilter(lambda record: "shuffle buffer" not in record.getMessage())
        self.epoch = state_dict["epoch"]
        self.rows.set_epoch(self.epoch)
        if state_dict["rows"] is not None:
            self.rows.load_state_dict(state_dict["rows"])
        self._iterator = None
        self._unused = state_dict["unused"].numpy()


class TokenStream(IterableDataset[dict[str, Tensor]]):
    """Batches of blocks from streams of documents, without end.

    Blocks are read in windows of some :data:`WINDOW`, a fixed share from each source, and shuffled
    within; while one window is trained on, the next is read. The state at the start of a window and
    the number of batches since give the position exactly.

    Args:
        streams: The sources.
        weights: Share of each in the blocks, in any unit.
        context_length: Tokens per block.
        batch_size: Blocks per batch.
        seed: Seed of the order within the windows.
        mask_documents: Add ``document_ids`` to a batch.
    """

    def __init__(
        self,
        streams: list[DocumentStream],
        weights: Sequence[float],
        context_length: int,
        batch_size: int,
        seed: int,
        mask_documents: bool = False,
    ) -> None:
        self.streams = streams
        self.context_length = context_length
        self.batch_size = batch_size
        self.seed = seed
        self.mask_documents = mask_documents
        self.batches_per_window = -(-WINDOW // batch_size)
        self.shares = shares(self.batches_per_window * batch_size, weights)
        self._first = (0, 0)
        self._states: dict[int, list[dict[str, Any]]] = {}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        window, given = self._first
        with ThreadPoolExecutor(1) as reader:
            upcoming = reader.submit(self._read, window)
            while True:
                blocks = upcoming.result()
                window += 1
                upcoming = reader.submit(self._read, window)
                for batch in np.split(blocks, self.batches_per_window)[given:]:
                    yield as_batch(
                        batch[:, :-1].copy(),
                        batch[:, 1:].copy(),
                        self.streams[0].tokenizer.end_of_text,
                        self.mask_documents,
                    )
                given = 0

    def _read(self, window: int) -> Blocks:
        """Reads the blocks of a window, in their shuffled order."""
        self._states[window] = [stream.state_dict() for stream in self.streams]
        self._states.pop(window - 3, None)
        blocks = np.concatenate(
            [
                stream.blocks(n, self.context_length)
                for stream, n in zip(self.streams, self.shares, strict=True)
            ]
        )
        return np.random.default_rng([self.seed, window]).permutation(blocks)

    def state_dict(self, consumed: int) -> dict[str, Any]:
        """Where the stream stands after so many batches, of which the latest are known."""
        window = consumed // self.batches_per_window
        if window not in self._states:  # Its first batch has not been asked for.
            window -= 1
        given = consumed - window * self.batches_per_window
        return {"window": window, "given": given, "streams": self._states[window]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`; to be called before the first batch is asked for."""
        self._first = (state_dict["window"], state_dict["given"])
        for stream, state in zip(self.streams, state_dict["streams"], strict=True):
            stream.load_state_dict(state)
