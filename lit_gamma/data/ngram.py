"""How well do the last one or two tokens predict the next? Interpolated Kneser-Ney n-grams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lit_gamma.errors import InputError

Ids = npt.NDArray[np.integer]
Keys = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class KneserNey:
    """An n-gram model by interpolated Kneser-Ney smoothing with one discount per order.

    With c the count of an n-gram and h its first n - 1 tokens, h' these without their first,

        p(w | h) = max(c(hw) - D, 0) / c(h·) + D N(h·) / c(h·) p(w | h'),

    where N(h·) is the number of distinct w seen after h, and D = n₁ / (n₁ + 2 n₂), of the numbers
    of n-grams that were seen once and twice. At lower orders c(hw) is the number of distinct tokens
    seen before hw; below the unigrams is the uniform distribution. A context never seen leaves
    p(w | h'). Every p(· | h) sums to 1. (Kneser & Ney, ICASSP 1995; the interpolated form and the
    estimate of D as in Chen & Goodman, Computer Speech & Language 13, 1999, section 3.)

    Args:
        corpus: Sequences of token ids, each shape (n_tokens,); no n-gram reaches over their ends.
        order: n, from 1 on.
        vocab_size: Number of tokens.

    Raises:
        InputError: There are too many possible n-grams to number them in 64 bits.
    """

    def __init__(self, corpus: Sequence[Ids], order: int, vocab_size: int) -> None:
        if (vocab_size + 1) ** order >= 2**63:
            raise InputError(
                f"{order}-grams of {vocab_size} tokens exceed 64 bits; lower the order"
            )
        self.order = order
        self.vocab_size = vocab_size
        self._base = vocab_size + 1
        keys, counts = np.unique(
            np.concatenate([self._keys(_windows(ids, order)) for ids in corpus]),
            return_counts=True,
        )
        self._levels = [_Level.of(keys, counts, self._base)]
        for n in range(order - 1, 0, -1):
            # Each distinct (n+1)-gram counts its last n tokens once.
            keys, counts = np.unique(keys % self._base**n, return_counts=True)
            self._levels.insert(0, _Level.of(keys, counts, self._base))

    def loss(self, windows: Ids) -> Floats:
        """Computes -ln p of the last token of each window.

        Args:
            windows: Shape (n, order): the token and the ones before it, -1 where there is none.

        Returns:
            Nats, float64, shape (n,); at most about ln(vocab_size) more than the rarest token's.
        """
        probability = np.full(len(windows), 1 / self.vocab_size)
        for n, level in enumerate(self._levels, 1):
            probability = level.interpolate(self._keys(windows[:, -n:]), self._base, probability)
        loss: Floats = -np.log(probability)
        return loss

    def _keys(self, windows: Ids) -> Keys:
        """Numbers n-grams, shape (n, k) to (n,); a missing token counts as one never seen."""
        keys = np.zeros(len(windows), np.int64)
        for column in windows.T:
            keys = keys * self._base + np.where(column < 0, self.vocab_size, column)
        return keys


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order, by sorted keys, and their contexts."""

    grams: Keys
    counts: Floats
    contexts: Keys
    totals: Floats
    kinds: Floats
    discount: float

    @classmethod
    def of(cls, grams: Keys, counts: npt.NDArray[np.int64], base: int) -> _Level:
        contexts, first, kinds = np.unique(grams // base, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        once, twice = (counts == 1).sum(), (counts == 2).sum()
        # Without n-grams seen once there is nothing to estimate it from, but it must not be 0.
        discount = float(once / (once + 2 * twice)) if once and twice else 0.5
        return cls(
            grams, counts.astype(float), contexts, totals.astype(float), kinds.astype(float),
            discount,
        )  # fmt: skip

    def interpolate(self, grams: Keys, base: int, lower: Floats) -> Floats:
        """The probabilities of this order, from those of the order below."""
        context = grams // base
        count = _look_up(self.grams, self.counts, grams)
        total = _look_up(self.contexts, self.totals, context)
        kinds = _look_up(self.contexts, self.kinds, context)
        kept = np.maximum(count - self.discount, 0) + self.discount * kinds * lower
        return np.where(total > 0, kept / np.maximum(total, 1), lower)


def _windows(ids: Ids, order: int) -> Ids:
    windows = np.lib.stride_tricks.sliding_window_view(ids, order) if len(ids) >= order else None
    return ids[:0].reshape(0, order) if windows is None else windows


def _look_up(keys: Keys, values: Floats, wanted: Keys) -> Floats:
    """The values of wanted keys; 0 for keys that are not there."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
