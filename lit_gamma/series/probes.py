"""What is recorded of a series where a text is given: its loss, and what happens on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lit_gamma.batch import token_loss
from lit_gamma.callbacks import AttentionSink, HiddenStates, ProbeLoss, Schedule
from lit_gamma.data.documents import LocalDocuments
from lit_gamma.data.packing import Blocks
from lit_gamma.data.prepared import TokenFile, write_tokens
from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError
from lit_gamma.files import sha256_of
from lit_gamma.probing.blocks import Batch
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run
from lit_gamma.series.models import Model

_AT_ONCE = 64


class ProbeText:
    """A text that the models of a series are run on.

    Args:
        file: Text, JSONL or Parquet.

    Attributes:
        digest: SHA-256 of the file, hexadecimal.

    Raises:
        InputError: It is no file.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise InputError(f"--text {file} is no file; give a text, JSONL or Parquet file")
        self.digest = sha256_of(file)
        self._file = file

    def callbacks(self) -> list[TrajectoryCallback]:
        """What is recorded, at every checkpoint."""
        every = Schedule(every=1)
        return [
            ProbeLoss(every, forward=_token_loss),
            HiddenStates(every, forward=_logits),
            AttentionSink(every, forward=_logits),
        ]

    def cut_for(self, model: Model) -> Batch:
        """Cuts the text as a model reads it, which those after it do alike; gives the beginning.

        Raises:
            InputError: It cannot be read.
        """
        self._cut: tuple[Tokenizer, int] = model.tokenizer, model.context_length
        return next(self._blocks())

    def show(self, run: Run) -> None:
        """Lets a run's callbacks find the text."""
        run.data = SimpleNamespace(tokenizer=self._cut[0])
        run.validation = lambda: {"text": self._blocks()}

    def _blocks(self) -> Iterator[Batch]:
        """The blocks of the text, as in validation, some at a time."""
        tokenizer, context_length = self._cut
        with TemporaryDirectory() as folder:
            text = LocalDocuments(str(self._file), "text", "text")
            write_tokens(text, tokenizer, Path(folder))
            blocks = Blocks(TokenFile(Path(folder)), context_length, tokenizer.end_of_text)
            for index in torch.split(torch.arange(len(blocks)), _AT_ONCE):
                yield blocks[index]


def _logits(module: Any, batch: Batch) -> Tensor:
    output = module(batch["input_ids"])
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _token_loss(module: Any, batch: Batch) -> Tensor:
    return token_loss(_logits(module, batch), batch["labels"])
