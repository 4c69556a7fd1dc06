"""What the tokens of a probe are: a table with a row for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lit_gamma.probing.blocks import ProbeSet
from lit_gamma.recording.described import CountedText, TokenizedText
from lit_gamma.trajectory.arrow import ArrowStream
from lit_gamma.trajectory.token_classes import NGRAMS

_COLUMNS = {
    "token": (pa.int32(), "number of the token in probe_loss"),
    "set": (pa.string(), "validation set"),
    "block": (pa.int32(), "place of the block in its set"),
    "position": (pa.int32(), "in the block, from 0; the prediction sees position + 1 tokens"),
    "token_id": (pa.int32(), "the token that is predicted"),
    "text": (pa.string(), "its text"),
    "class": (pa.string(), "what it needs to be predicted, see lit_gamma.token_classes"),
    "full_context": (pa.float32(), "loss of the trained model, nats"),
}


def describe(probe: ProbeSet, data: Any) -> dict[str, Any]:
    """What is known of the tokens before training.

    Args:
        probe: The blocks.
        data: What they come from, see :mod:`lit_gamma.recording.described`.

    Returns:
        The columns up to ``trigram``.
    """
    block, position = (part.cpu().numpy() for part in probe.labelled.nonzero().unbind(1))
    windows = probe.windows(len(NGRAMS)).numpy()
    ids = windows[:, -1].tolist()
    decode = data.tokenizer.decode if isinstance(data, TokenizedText) else lambda ids: None
    text = {i: decode([i]) for i in set(ids)}
    counted = isinstance(data, CountedText)
    losses = data.ngram_loss(windows) if counted else np.full(windows.shape, np.nan)
    return {
        "token": np.arange(len(ids)),
        "set": [probe.sets[i] for i in block],
        "block": [probe.blocks[i] for i in block],
        "position": position,
        "token_id": ids,
        "text": [text[i] for i in ids],
        **dict(zip(NGRAMS, losses.T, strict=True)),
    }


def write_tokens(path: Path, tokens: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes the table anew.

    Args:
        path: The file.
        tokens: Its columns.
        about: For the schema's metadata.

    Raises:
        OSError: The file cannot be written.
    """
    fields = []
    for name in tokens:
        kind, meaning = _COLUMNS[name] if name in _COLUMNS else (pa.float32(), _meaning(name))
        fields.append(pa.field(name, kind, metadata={"meaning": meaning}))
    table = ArrowStream(path, pa.schema(fields, metadata={"lit_gamma": json.dumps(about)}))
    table.append(tokens)
    table.close()


def _meaning(name: str) -> str:
    if name in NGRAMS:
        return f"loss under a {name} model of the training text, nats; NaN if it is not known"
    context = int(name.removeprefix("context_"))
    return f"loss of the trained model that sees {context // 2 + 1} .. {context} tokens, nats"
