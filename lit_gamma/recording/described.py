"""What callbacks ask of a DataModule, each only if it is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lit_gamma.data.tokenizers import Tokenizer


@runtime_checkable
class TokenizedText(Protocol):
    """Data whose tokens are text."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""


@runtime_checkable
class CountedText(Protocol):
    """Data that knows how predictable a token is from the few before it.

    Attributes:
        vocab_size: Number of tokens.
    """

    vocab_size: int

    def ngram_loss(self, windows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float64]:
        """Computes the loss under the n-gram models of the training text.

        Args:
            windows: Tokens and those before them, -1 where there is none, shape (n, order).

        Returns:
            Nats, shape (n, order), for n-grams of length 1 to order; NaN where that is not known.
        """


@runtime_checkable
class ClassifiedTask(Protocol):
    """Data all of whose labelled tokens need the same to be predicted.

    Attributes:
        token_class: Their class, see :mod:`lit_gamma.trajectory.token_classes`.
    """

    token_class: str
