"""How well a trained model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from tqdm import tqdm

from lit_gamma.batch import IGNORED
from lit_gamma.data.documents import LocalDocuments, Piece
from lit_gamma.data.packing import Blocks
from lit_gamma.data.prepared import TokenFile, write_tokens
from lit_gamma.trained.checkpoint import Trained


@dataclass(frozen=True)
class TextLoss:
    """How well a model predicts a text.

    Attributes:
        n_tokens: Tokens that were predicted: all but the first, an end-of-text after each document
            included.
        n_bytes: Size of the text in UTF-8.
        loss: Mean loss per token, nats.
    """

    n_tokens: int
    n_bytes: int
    loss: float

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Total loss in bits per byte of the text, comparable between tokenizers."""
        return self.loss * self.n_tokens / self.n_bytes / math.log(2)


@torch.inference_mode()
def text_loss(
    trained: Trained,
    data_files: str | list[str],
    field: str = "text",
    batch_size: int = 16,
    device: str | torch.device = "cpu",
) -> TextLoss:
    """Computes the loss on text, in blocks of the model's ``context_length`` as in validation.

    In a terminal a bar shows how far it is.

    Args:
        trained: The model.
        data_files: Paths or glob patterns of text, JSONL or Parquet files.
        field: Column that holds the text, in JSONL and Parquet files.
        batch_size: Blocks that are run together.
        device: Where to run.

    Raises:
        InputError: The model has no tokenizer, or the files cannot be read.
    """
    tokenizer, model = trained.text_tokenizer(), trained.model.to(device)
    n_bytes, total, n_tokens = 0, 0.0, 0

    def documents() -> Iterator[Piece]:
        nonlocal n_bytes
        for piece in LocalDocuments(data_files, field, "data_files"):
            n_bytes += len(piece[0].encode())
            yield piece

    with TemporaryDirectory() as folder:
        write_tokens(documents(), tokenizer, Path(folder))
        tokens = TokenFile(Path(folder))
        blocks = Blocks(tokens, model.config.context_length, tokenizer.end_of_text)
        batches = torch.split(torch.arange(len(blocks)), batch_size)
        for index in tqdm(batches, "batches", leave=False, dynamic_ncols=True, disable=None):
            batch = {name: tensor.to(device) for name, tensor in blocks[index].items()}
            logits = model(batch["input_ids"]).flatten(0, 1).float()
            labels = batch["labels"].flatten()
            total += F.cross_entropy(logits, labels, reduction="sum").item()
            n_tokens += int((labels != IGNORED).sum())
    return TextLoss(n_tokens, n_bytes, total / n_tokens)
