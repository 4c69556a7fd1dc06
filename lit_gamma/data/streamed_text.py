"""The DataModule for text that is streamed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import DataLoader

from lit_gamma.data.prepared import TokenFile
from lit_gamma.data.text import Batches, Text
from lit_gamma.data.token_stream import DocumentStream, TokenStream, held_out_documents
from lit_gamma.errors import InputError


class StreamedText(Text):
    """:class:`Text` that is read and encoded as training goes on; nothing but validation is stored.

    Reads hub datasets and local JSONL or Parquet files. Documents come shard by shard, the shards
    in an order of seed and epoch; blocks are shuffled within windows of about a thousand. Every
    process reads shards of its own. There is no epoch: set ``trainer.max_steps``.

    A checkpoint resumes exactly, on as many processes as before and with the same sources, as long
    as the files of the dataset do not change (name a ``revision``).

    Args:
        val_documents: Most documents kept for validation per source, unless it names a validation
            set. They are ``val_fraction`` of all, chosen by their content, and the first of these
            that the stream brings; training leaves out all of them.
        kwargs: As for :class:`Text`. Sources without weights get equal shares.
    """

    def __init__(self, val_documents: int = 500, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if val_documents < 1:
            raise InputError(f"data.val_documents must be at least 1, got {val_documents}")
        self.val_documents = val_documents
        self._resume: dict[str, Any] | None = None
        self._stream: TokenStream | None = None

    def setup(self, stage: str) -> None:
        """Cuts the validation texts into blocks."""
        self.val_sets = {name: self._blocks(tokens) for name, tokens in self._kept.items()}

    def prepare_data(self) -> None:
        """Reads the validation texts once, before any run directory is made."""
        self._kept  # noqa: B018 (kept for setup)

    def train_dataloader(self) -> Batches:
        """Batches of blocks, without end."""
        streams = [
            DocumentStream(
                documents,
                self.tokenizer,
                0.0 if self._validation[name] else self.val_fraction,
                self.seed,
                self.ranks,
            )
            for name, documents in self._training.items()
        ]
        weights = self.weights or [1.0] * len(streams)
        self._stream = TokenStream(
            streams, weights, self.context_length, self.batch_size, self.seed, self.mask_documents
        )
        if self._resume is not None:
            self._stream.load_state_dict(self._resume)
        return DataLoader(self._stream, batch_size=None)

    def ngram_loss(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """NaN for every token: the training text is not there to be counted."""
        return np.full(windows.shape, np.nan)

    def state_dict(self) -> dict[str, Any]:
        """Where every process stands in its stream, and the tokenizer."""
        state = super().state_dict()
        assert self._stream is not None
        streams = [self._stream.state_dict(state["consumed"])]
        if dist.is_initialized():
            streams = [None] * dist.get_world_size()  # type: ignore[list-item]
            dist.all_gather_object(streams, self._stream.state_dict(state["consumed"]))
        return {**state, "streams": streams}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`.

        Raises:
            InputError: Another tokenizer, number of sources or number of processes than before.
        """
        super().load_state_dict(state_dict)
        streams = state_dict["streams"]
        processes, rank = self.ranks
        if len(streams) != processes:
            raise InputError(
                f"the checkpoint streams text to {len(streams)} processes, this run to {processes};"
                " resume with the same number"
            )
        self._resume = streams[rank]
        if len(self._resume["streams"]) != len(self.sources):
            raise InputError("data.sources: resume with the sources of the checkpoint, no others")
        if self._stream is not None:
            self._stream.load_state_dict(self._resume)

    @cached_property
    def _kept(self) -> dict[str, TokenFile]:
        """The validation tokens by source."""
        kept = {}
        for name, documents in self._training.items():
            own = self._validation[name]
            share = [self.val_fraction, self.val_documents]
            kept[name] = (
                self._prepared(own, own.identity())
                if own
                else self._prepared(
                    held_out_documents(documents, self.val_fraction, self.val_documents),
                    ["held out", *share, documents.identity()],
                )
            )
            if len(kept[name]) < 2:
                raise InputError(
                    f"data.sources.{name} holds no validation text; raise val_fraction"
                )
        return kept
