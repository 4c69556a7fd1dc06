"""Text as blocks of tokens: files or hub datasets, one source or several mixed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lit_gamma.data.documents import Piece
from lit_gamma.data.ngram_loss import cached_ngram_loss
from lit_gamma.data.packing import Blocks, Concatenated
from lit_gamma.data.prepared import TokenFile, cached, write_tokens
from lit_gamma.data.sampler import MixedBatches, ResumableDataModule, shares
from lit_gamma.data.source import Source, weights_of
from lit_gamma.data.tokenizers import Tokenizer, bpe_size, load_tokenizer, train_bpe
from lit_gamma.errors import InputError

Batches = DataLoader[dict[str, Tensor]]

_NGRAM_TOKENS = 5_000_000  # Most tokens of the training text that n-grams are counted in.


class Text(ResumableDataModule):
    """Text as one stream of tokens per source, cut into blocks without loss.

    A plain text file is one document; of a JSONL or Parquet file or a hub dataset, every row's
    ``field`` is one. An end-of-text token follows each. The tokens are written once to a cache,
    found again by a fingerprint of source and tokenizer, and mapped from there.

    Validation sets: one per source, by its name; ``text`` for ``data_files``.

    Args:
        data_files: Short for one source: paths or glob patterns of text, JSONL or Parquet files.
        field: Column of ``data_files`` that holds the text, in JSONL and Parquet files.
        sources: Several sources, by name, or one that is not local files.
        tokenizer: ``bytes``; ``bpe:SIZE``, trained on the text; the path of a ``tokenizer.json``;
            or a repository of the hub (``gpt2``).
        end_of_text: The token between documents; of the usual names the one it has if None.
        vocab_multiple_of: Round the model's vocabulary up; multiples of 64 are faster on a GPU.
        context_length: Tokens per block.
        batch_size: Blocks per batch and process.
        val_fraction: Share of each source's end that is kept for validation, unless the source
            names a validation set of its own.
        mask_documents: Keep attention within documents.
        seed: Seed of the order of the training blocks.
        cache_dir: Folder of the prepared tokens; the cache of ``datasets`` if None.

    Raises:
        InputError: A value is impossible; a file is missing, empty, not UTF-8, lacks the field, or
            is too short; the hub cannot be reached; the disk is full.
    """

    def __init__(
        self,
        data_files: str | list[str] | None = None,
        field: str = "text",
        sources: dict[str, Source] | None = None,
        tokenizer: str = "bytes",
        end_of_text: str | None = None,
        vocab_multiple_of: int = 1,
        context_length: int = 128,
        batch_size: int = 16,
        val_fraction: float = 0.1,
        mask_documents: bool = False,
        seed: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        import datasets

        super().__init__()
        if bool(data_files) == bool(sources):
            fault = "are given beside data.sources" if sources else "names no file"
            raise InputError(f"data.data_files {fault}; give --data.data_files FILE or the sources")
        self.sources = sources or {"text": Source(data_files, field=field)}
        self.tokenizer_name = tokenizer
        self.end_of_text = end_of_text
        self.context_length = context_length
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.mask_documents = mask_documents
        self.seed = seed
        self.cache = Path(cache_dir or Path(datasets.config.HF_DATASETS_CACHE, "lit_gamma"))
        _at_least_one(
            context_length=context_length,
            batch_size=batch_size,
            vocab_multiple_of=vocab_multiple_of,
        )
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        self.weights = weights_of(self.sources)
        keys = {name: f"data.sources.{name}" if sources else "data" for name in self.sources}
        self._training = {name: of.training(keys[name]) for name, of in self.sources.items()}
        self._validation = {name: of.validation(keys[name]) for name, of in self.sources.items()}
        size = bpe_size(tokenizer) or self.tokenizer.vocab_size
        self.vocab_size = -(-size // vocab_multiple_of) * vocab_multiple_of

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; a BPE is trained when it is first asked for."""
        size = bpe_size(self.tokenizer_name)
        if size is None:
            return load_tokenizer(self.tokenizer_name, self.end_of_text)
        corpora = list(self._training.values())
        folder = cached(
            self.cache,
            ["bpe", size, [corpus.identity() for corpus in corpora]],
            lambda draft: train_bpe(corpora, size).save(str(draft / "tokenizer.json")),
        )
        return load_tokenizer(str(folder / "tokenizer.json"), self.end_of_text)

    def prepare_data(self) -> None:
        """Reads the sources once, before any run directory is made."""
        self._parts  # noqa: B018 (kept for setup)

    def setup(self, stage: str) -> None:
        """Cuts the streams into training and validation blocks."""
        self.train_set = Concatenated([self._blocks(train) for train, _ in self._parts.values()])
        self.val_sets = {name: self._blocks(val) for name, (_, val) in self._parts.items()}

    def train_dataloader(self) -> Batches:
        """Batches of shuffled blocks."""
        sizes = [len(part) for part in self.train_set.parts]
        if self.weights is None:
            order = self.shuffled_batches(sum(sizes), self.batch_size, self.seed)
        else:
            order = self.resumed(
                MixedBatches(sizes, self.weights, self.batch_size, self.seed, *self.ranks)
            )
        if not len(order):
            raise InputError(
                f"data: {sum(sizes)} blocks do not fill one batch of batch_size {self.batch_size} "
                f"on each of {self.ranks[0]} processes; lower data.batch_size or give more text"
            )
        return self._loader(self.train_set, order)

    def val_dataloader(self) -> dict[str, Batches]:
        """The validation blocks of each source, in order, under its name."""
        return {
            name: self._loader(blocks, self.in_order(len(blocks), self.batch_size))
            for name, blocks in self.val_sets.items()
        }

    test_dataloader = val_dataloader

    def ngram_loss(self, windows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The loss of tokens under n-gram models of the training text, each source by its weight.

        Args:
            windows: The tokens, each with the n - 1 before it, or -1: shape (n_tokens, n).

        Returns:
            Nats, of the unigram to the n-gram model, shape (n_tokens, n).
        """
        parts = [training for training, _ in self._parts.values()]
        wanted = shares(_NGRAM_TOKENS, self.weights or [len(part) for part in parts])
        return cached_ngram_loss(self.cache, parts, wanted, self.vocab_size, windows)

    def state_dict(self) -> dict[str, Any]:
        """How far training has come, and the tokenizer."""
        backend = self.tokenizer.backend
        return {
            **super().state_dict(),
            "tokenizer": backend.to_str(),
            "end_of_text": backend.id_to_token(self.tokenizer.end_of_text),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`.

        Raises:
            InputError: The checkpoint was trained with another tokenizer.
        """
        if state_dict["tokenizer"] != self.tokenizer.backend.to_str():
            raise InputError(
                f"data.tokenizer {self.tokenizer_name!r} is not the tokenizer that the checkpoint "
                "was trained with; give the same one and, for a BPE, the same text"
            )
        super().load_state_dict(state_dict)

    def _loader(self, blocks: Any, order: Any) -> Batches:
        # Reading a block takes microseconds, so that worker processes would only cost.
        pinned = torch.cuda.is_available()
        return DataLoader(blocks, sampler=order, batch_size=None, pin_memory=pinned)

    def _blocks(self, tokens: TokenFile) -> Blocks:
        return Blocks(tokens, self.context_length, self.tokenizer.end_of_text, self.mask_documents)

    @cached_property
    def _parts(self) -> dict[str, tuple[TokenFile, TokenFile]]:
        """Training and validation tokens by source; enough of each to begin with."""
        parts = {name: self._split(name) for name in self.sources}
        blocks = sum((len(train) - 1) // self.context_length for train, _ in parts.values())
        if blocks < self.batch_size or any(len(t) < 2 for part in parts.values() for t in part):
            held = ", ".join(f"{len(a) + len(b)} tokens" for a, b in parts.values())
            raise InputError(
                f"data.{'data_files' if list(parts) == ['text'] else 'sources'} hold {held}, too "
                f"few for one batch of {self.batch_size} blocks of {self.context_length} and a "
                f"validation part; lower data.context_length or data.batch_size, or give more text"
            )
        longest = max(t.longest_document for part in parts.values() for t in part)
        if self.mask_documents and self.context_length > longest:
            raise InputError(
                f"data.context_length {self.context_length} is longer than the longest document "
                f"({longest} tokens), and data.mask_documents lets no token see further; lower it"
            )
        return parts

    def _split(self, name: str) -> tuple[TokenFile, TokenFile]:
        documents = self._training[name]
        tokens = self._prepared(documents, documents.identity())
        if own := self._validation[name]:
            return tokens, self._prepared(own, own.identity())
        return tokens.split(round(len(tokens) * (1 - self.val_fraction)))

    def _prepared(self, documents: Iterable[Piece], identity: Any) -> TokenFile:
        folder = cached(
            self.cache,
            ["tokens", identity, self.tokenizer.backend.to_str(), self.tokenizer.end_of_text],
            lambda draft: write_tokens(documents, self.tokenizer, draft),
        )
        return TokenFile(folder)


def _at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise InputError(f"data.{name} must be at least 1, got {value}")
