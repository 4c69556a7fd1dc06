"""Which tokens need what to be predicted: named classes, from n-grams and truncated contexts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lit_gamma.errors import InputError

CLASSES = ("trivial", "local", "context_constrained", "unpredictable")
"""The classes, from those that need least."""

NGRAMS = ("unigram", "bigram", "trigram")
"""The columns with the loss under n-gram models."""


@dataclass(frozen=True)
class TokenClasses:
    """What a token needs to be predicted.

    With the losses of a token, in nats: ℓₙ under the n-gram models of the training text; ℓ_c of the
    trained model when it sees at most c tokens of context; ℓ when it sees all, at the end of the
    run; τ = ``predictable``, g = ``gain``, k = ``local_context``; and ℓ_local = min(ℓ_c, c ≤ k),
    with ℓ among them where there are no more than k tokens,

    =================== ====================================================================
    class               condition, the first that holds
    =================== ====================================================================
    trivial             min(ℓ₁, ℓ₂, ℓ₃) ≤ τ: an n-gram predicts it
    context_constrained ℓ ≤ τ and ℓ_local - ℓ ≥ g: it takes more than k tokens, which suffice
    local               min(ℓ_local, ℓ) ≤ τ: at most k tokens do
    unpredictable       otherwise: not even the trained model predicts it
    =================== ====================================================================

    At the default τ = ln 2 a token counts as predicted if it has at least half the probability, as
    much as all others together, whatever the vocabulary; at g = ln 2 the long context must at
    least double its probability. Both are conventions. The losses are in the table of tokens, so
    that other thresholds, or the best of several models, need no new run. Without n-grams (NaN) no
    token is trivial.

    Attributes:
        predictable: τ, nats.
        gain: g, nats.
        local_context: k, tokens.
    """

    predictable: float = math.log(2)
    gain: float = math.log(2)
    local_context: int = 16

    def __post_init__(self) -> None:
        if not (self.predictable > 0 and self.gain > 0):
            raise InputError(
                "the thresholds of token classes, predictable and gain, must be positive numbers "
                f"of nats, got {self.predictable} and {self.gain}"
            )
        if self.local_context < 1:
            raise InputError(
                f"local_context of token classes must be at least 1 token, got {self.local_context}"
            )

    def of(self, tokens: Mapping[str, Any]) -> npt.NDArray[np.str_]:
        """Names the class of each token.

        Args:
            tokens: A table (DataFrame or dict of columns) with ``position``, ``unigram``,
                ``bigram``, ``trigram``, ``context_1``, ``context_2``, ``context_4``, ... and
                ``full_context``.

        Returns:
            One of :data:`CLASSES` per token, shape (n_tokens,).
        """
        full = np.asarray(tokens["full_context"], float)
        contexts = {name: re.fullmatch(r"context_(\d+)", name) for name in tokens}
        near = [name for name, c in contexts.items() if c and int(c[1]) <= self.local_context]
        has_no_more = np.asarray(tokens["position"]) < self.local_context
        local = np.min([np.where(has_no_more, full, np.inf), *(tokens[n] for n in near)], axis=0)
        ngram = np.fmin.reduce([tokens[name] for name in NGRAMS])
        return np.select(
            [
                ngram <= self.predictable,
                (full <= self.predictable) & (local - full >= self.gain),
                np.minimum(local, full) <= self.predictable,
            ],
            ["trivial", "context_constrained", "local"],
            "unpredictable",
        )
