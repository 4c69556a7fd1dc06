"""The probe's tokens in TensorBoard: a histogram, the coloured text, and the loss by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib import colormaps
from PIL import Image, ImageDraw
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lit_gamma.trajectory.layouts import vectors
from lit_gamma.trajectory.tensorboard import picture, text_font, write_values

PICTURED_TOKENS = 768
"""Most tokens of a validation set that are drawn."""

_COLUMNS = 96
_COLOURS = (colormaps["Reds"](np.linspace(0, 0.6, 33), bytes=True)[:, :3]).flatten().tolist()
_INK = 33  # In the palette, after the colours.

Floats = npt.NDArray[np.floating]


def draw_probe(
    writer: SummaryWriter,
    group: str,
    step: int,
    loss: Floats,
    tokens: Mapping[str, Any],
    uniform: float | None,
) -> None:
    """Draws a histogram of the losses, and the text coloured by them, an image per validation set.

    Args:
        writer: TensorBoard's writer.
        group: First part of the tags.
        step: The step.
        loss: Nats, shape (n_tokens,).
        tokens: The table of tokens.
        uniform: The loss of a uniform guess; None if the tokens have no text.
    """
    finite = loss[np.isfinite(loss)]
    if len(finite):
        writer.add_histogram(f"{group}/tokens", finite, step)
    if uniform is None:
        return
    images = []
    for name in dict.fromkeys(tokens["set"]):
        shown = [i for i, of in enumerate(tokens["set"]) if of == name][:PICTURED_TOKENS]
        texts, blocks = ([tokens[column][i] for i in shown] for column in ("text", "block"))
        image = coloured_text(texts, loss[shown] / uniform, blocks)
        images.append(Summary.Value(tag=f"{group}/text/{name}", image=image))
    write_values(writer, images, step)


def coloured_text(texts: Sequence[str], level: Floats, blocks: Sequence[int]) -> Summary.Image:
    """Writes tokens one after the other on a background from white (0) to red (1 and more).

    Args:
        texts: The tokens; a newline in one ends the line.
        level: Shape (n_tokens,); NaN counts as 1.
        blocks: The block of each token; a line stays free between two.

    Returns:
        A PNG of 34 colours, :data:`_COLUMNS` letters wide.
    """
    cells = list(_laid_out(texts, blocks))
    font, width, height = text_font()
    n_lines = cells[-1][0] + 1 if cells else 1
    image = Image.new("P", (_COLUMNS * width, n_lines * height), 0)
    image.putpalette([*_COLOURS, 0, 0, 0])
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1"  # Sharp letters: no shades of grey outside the palette.
    shades = (np.nan_to_num(np.clip(level, 0, 1), nan=1) * 32).round().astype(int)
    for line, column, letter, token in cells:
        x, y = column * width, line * height
        pen.rectangle((x, y, x + width - 1, y + height - 1), int(shades[token]))
        pen.text((x, y), letter, _INK, font)
    return picture(image)


def _laid_out(texts: Sequence[str], blocks: Sequence[int]) -> Iterator[tuple[int, int, str, int]]:
    """Line, column, letter and token of each letter; newlines are made visible."""
    line = column = 0
    for token, text in enumerate(texts):
        if blocks[token] != blocks[token - 1] and token:
            line, column = line + 2, 0
        for letter in text:
            if column == _COLUMNS:
                line, column = line + 1, 0
            yield line, column, _visible(letter), token
            line, column = (line + 1, 0) if letter == "\n" else (line, column + 1)


def _visible(letter: str) -> str:
    """A letter that takes one cell: line ends and other controls would be drawn as layout."""
    if letter in "\n\r\v\f\x85\u2028\u2029":
        return "↵"
    return letter if letter.isprintable() else "·"


def chart_classes(
    writer: SummaryWriter, group: str, record: Sequence[pa.RecordBatch], classes: Sequence[str]
) -> None:
    """Writes the mean loss of each class at each recorded step.

    Args:
        writer: TensorBoard's writer.
        group: First part of the tags.
        record: The batches of ``probe_loss.arrow``.
        classes: The class of each token, shape (n_tokens,).
    """
    names = sorted(set(classes))
    member = np.array([np.asarray(classes) == name for name in names], np.float32)
    member /= member.sum(1, keepdims=True)
    for batch in record:
        means = vectors(batch["loss"]).astype(np.float32) @ member.T
        for step, row in zip(batch["step"].to_pylist(), means.tolist(), strict=True):
            values = [
                Summary.Value(tag=f"{group}/class/{name}", simple_value=mean)
                for name, mean in zip(names, row, strict=True)
            ]
            write_values(writer, values, step)
