"""What n-grams of the training text make of given tokens, computed once and cached."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lit_gamma.data.ngram import KneserNey
from lit_gamma.data.prepared import TokenFile, Tokens, cached

_CHUNKS = 50  # Places of a source that a sample is taken from, evenly spaced.


def cached_ngram_loss(
    cache: Path,
    parts: Sequence[TokenFile],
    wanted: Sequence[int],
    vocab_size: int,
    windows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """The loss of tokens under Kneser-Ney models of the orders 1 to n.

    Args:
        cache: Folder of all prepared things.
        parts: The training tokens of each source.
        wanted: How many tokens of each to count at most.
        vocab_size: Number of tokens.
        windows: The tokens, each with the n - 1 before it, or -1: shape (n_tokens, n).

    Returns:
        Nats, shape (n_tokens, n).
    """

    def compute(folder: Path) -> None:
        corpus = [chunk for part, n in zip(parts, wanted, strict=True) for chunk in sample(part, n)]
        orders = range(1, windows.shape[1] + 1)
        losses = [KneserNey(corpus, n, vocab_size).loss(windows[:, -n:]) for n in orders]
        np.save(folder / "ngram_loss.npy", np.stack(losses, axis=1))

    identity = [
        "ngram loss",
        [[part.folder.name, part.start, part.length] for part in parts],
        [*wanted, _CHUNKS, vocab_size, *windows.shape],
        hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest(),
    ]
    loss: npt.NDArray[np.float64] = np.load(cached(cache, identity, compute) / "ngram_loss.npy")
    return loss


def sample(part: TokenFile, n: int) -> list[Tokens]:
    """At most n tokens of a source, in evenly spaced chunks; all of them in one if there are fewer.

    Args:
        part: The source.
        n: How many tokens.
    """
    if len(part) <= n:
        return [part[np.arange(len(part))]]
    starts = np.linspace(0, len(part) - n // _CHUNKS, _CHUNKS).astype(np.int64)
    return [part[start + np.arange(n // _CHUNKS)] for start in starts]
