"""Any local text or JSONL file as blocks of bytes."""

from __future__ import annotations

import glob
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_gamma.data.sampler import ResumableDataModule
from lit_gamma.errors import InputError

END_OF_TEXT = 256
"""The token between documents; tokens 0 to 255 are the bytes."""

_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class Blocks(Dataset[dict[str, Tensor]]):
    """A token stream cut into blocks: every token but the first is a label exactly once.

    Args:
        tokens: The stream, shape (n_tokens,), at least two tokens.
        context_length: Tokens per block. The last block is filled up with end-of-text, whose
            labels are ignored (-100).
    """

    def __init__(self, tokens: npt.NDArray[np.uint16], context_length: int) -> None:
        n_blocks = -(-(len(tokens) - 1) // context_length)
        stream = np.full(n_blocks * context_length + 1, END_OF_TEXT, dtype=np.int64)
        stream[: len(tokens)] = tokens
        self.input_ids = torch.from_numpy(stream[:-1]).view(n_blocks, context_length)
        labels = torch.from_numpy(stream[1:].copy())
        labels[len(tokens) - 1 :] = -100
        self.labels = labels.view(n_blocks, context_length)

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the given int64 indices: ``input_ids`` and ``labels``."""
        return {"input_ids": self.input_ids[index], "labels": self.labels[index]}


class TextFiles(ResumableDataModule):
    """Local text files as one stream of bytes, the last part of it for validation.

    A plain text file is one document; of a JSONL or Parquet file, every row's ``field`` is one.
    Documents are joined by an end-of-text token and packed into blocks without loss.

    Validation set: ``text``.

    Args:
        data_files: Paths or glob patterns; must be given.
        field: Column that holds the text, in JSONL and Parquet files.
        context_length: Tokens (bytes) per block.
        batch_size: Blocks per batch.
        val_fraction: Share of the stream's end that is kept for validation.
        seed: Seed of the order of the training blocks.

    Raises:
        InputError: A value is impossible; a file is missing, empty, not UTF-8, lacks the field, or
            is too short.
    """

    vocab_size = 257

    def __init__(
        self,
        data_files: str | list[str] | None = None,
        field: str = "text",
        context_length: int = 128,
        batch_size: int = 16,
        val_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not data_files:
            raise InputError("data.data_files names no file; give --data.data_files FILE")
        self.patterns = [data_files] if isinstance(data_files, str) else list(data_files)
        self.field = field
        self.context_length = context_length
        self.batch_size = batch_size
        self.val_fraction = val_fraction
        self.seed = seed
        if not 0 < val_fraction < 1:
            raise InputError(f"data.val_fraction must lie between 0 and 1, got {val_fraction}")
        if context_length < 1 or batch_size < 1:
            raise InputError(
                f"data.context_length and data.batch_size must be at least 1, "
                f"got {context_length} and {batch_size}"
            )
        self.files = _expand(self.patterns)

    def prepare_data(self) -> None:
        """Lightning hook: reads the files once before any directory is made."""
        self._parts  # noqa: B018 (read here, kept for setup)

    def setup(self, stage: str) -> None:
        """Lightning hook: cuts the stream into training and validation blocks."""
        train, val = self._parts
        self.train_set = Blocks(train, self.context_length)
        self.val_set = Blocks(val, self.context_length)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of shuffled blocks."""
        order = self.shuffled_batches(len(self.train_set), self.batch_size, self.seed)
        return DataLoader(self.train_set, sampler=order, batch_size=None)

    def val_dataloader(self) -> dict[str, DataLoader[dict[str, Tensor]]]:
        """The validation blocks in order, under the name ``text``."""
        order = torch.split(torch.arange(len(self.val_set)), self.batch_size)
        return {"text": DataLoader(self.val_set, sampler=order, batch_size=None)}

    test_dataloader = val_dataloader

    @cached_property
    def _parts(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
        tokens = np.concatenate([_tokens(file, self.field) for file in self.files])
        n_train = round(len(tokens) * (1 - self.val_fraction))
        # A label needs the token before it, so a part of n tokens holds n - 1 labels.
        if n_train <= self.context_length * self.batch_size or len(tokens) - n_train < 2:
            raise InputError(
                f"data.data_files hold {len(tokens)} tokens, too few for one batch of "
                f"{self.batch_size} blocks of {self.context_length} and a validation part; "
                f"lower data.context_length or data.batch_size, or give more text"
            )
        return tokens[:n_train], tokens[n_train:]


def _expand(patterns: list[str]) -> list[str]:
    files = []
    for pattern in patterns:
        found = [pattern]  # a file whose own name holds glob characters
        if not Path(pattern).is_file():
            names = sorted(glob.glob(pattern, recursive=True))
            found = [name for name in names if Path(name).is_file()]
        if not found:
            raise InputError(f"data.data_files: no file matches {pattern!r}")
        files += found
    return list(dict.fromkeys(files))


def _tokens(file: str, field: str) -> npt.NDArray[np.uint16]:
    """Encodes one file: its documents' bytes, an end-of-text token after each."""
    content = Path(file).read_bytes()
    if not content:
        raise InputError(f"data.data_files: {file} is empty")
    builder = _BUILDERS.get(Path(file).suffix)
    try:
        if builder is None:
            content.decode()
            documents = [content]
        else:
            documents = _column(file, builder, field)
    except (datasets.exceptions.DatasetGenerationError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        cause = error.__cause__ or error
        kind = builder or "UTF-8 text"
        raise InputError(f"data.data_files: {file} cannot be read as {kind}: {cause}") from error
    parts = []
    for document in documents:
        parts.append(np.frombuffer(document, dtype=np.uint8).astype(np.uint16))
        parts.append(np.array([END_OF_TEXT], dtype=np.uint16))
    return np.concatenate(parts)


def _column(file: str, builder: str, field: str) -> list[bytes]:
    table = datasets.load_dataset(builder, data_files=glob.escape(file), split="train")
    if field not in table.column_names:
        known = ", ".join(table.column_names)
        raise InputError(f"data.field: {file} has no field {field!r}; it has {known}")
    documents = list(table[field])
    for row, document in enumerate(documents):
        if not isinstance(document, str):
            raise InputError(f"data.field: row {row} of {file}: {field!r} is no text: {document!r}")
    return [document.encode() for document in documents]
