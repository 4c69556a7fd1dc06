"""The models of a series, opened one at a time to be run on a text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError
from lit_gamma.files import parsed
from lit_gamma.model.pretrained import OWN_TYPE
from lit_gamma.model.transformer import Transformer
from lit_gamma.trained.checkpoint import folder_tokenizer, load

LONGEST = 512
"""Most tokens of a block for a model of ``transformers``: attention is held in memory whole."""


@dataclass(frozen=True)
class Model:
    """A checkpoint as a module that computes logits.

    Attributes:
        module: In evaluation mode, float32, on the CPU; its parts have the names that they have in
            the checkpoint.
        tokenizer: The tokenizer of its text.
        context_length: Tokens of a block.
    """

    module: nn.Module
    tokenizer: Tokenizer
    context_length: int


def open_model(path: Path) -> Model:
    """Opens a checkpoint of ours, or a folder that ``transformers`` can load.

    Raises:
        InputError: It is neither, or no tokenizer came with it.
    """
    config, kind = path / "config.json", None
    if config.is_file():
        with parsed(f"{config} is not the config of a model"):
            kind = json.loads(config.read_text()).get("model_type")
    if kind not in (None, OWN_TYPE):
        return _of_transformers(path)
    trained = load(path)
    length = trained.model.config.context_length
    return Model(_Ours(trained.model), trained.text_tokenizer(), length)


class _Ours(nn.Module):
    """A transformer under the name that it has in a checkpoint."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.transformer(input_ids)
        return logits


def _of_transformers(folder: Path) -> Model:
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise InputError(f"--text: {folder} needs its class: pip install transformers") from error
    tokenizer = folder_tokenizer(folder)
    if tokenizer is None:
        raise InputError(f"--text: {folder} holds no tokenizer.json; save the tokenizer there")
    what = f"--text: {folder} is no model that transformers can load"
    with parsed(what):
        try:
            opened: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        except (OSError, ImportError) as error:
            raise ValueError(error) from error
    model, found = opened
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"{what}: it has no {missing[0]}")
    longest = getattr(model.config, "max_position_embeddings", None) or LONGEST
    return Model(model.eval(), tokenizer, min(longest, LONGEST))
