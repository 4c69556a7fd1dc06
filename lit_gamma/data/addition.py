"""Addition in digits, with a square of operands held out: is it learnt as a rule?"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_gamma.batch import IGNORED
from lit_gamma.data.generated import GeneratedTask
from lit_gamma.errors import InputError

_VALIDATION_SEED = 0  # The same for every run, and so are the pairs kept from training.
PLUS, EQUALS = 10, 11
"""The tokens beside the digits, which are 0 to 9."""


class Sums(Dataset[dict[str, Tensor]]):
    """Sums written in digits, the first digit first; the digits of the answer are the labels.

    Args:
        pairs: The operands, int64, shape (n, 2).
        n_digits: Digits of an operand, with leading zeros; the answer has one more.
    """

    def __init__(self, pairs: Tensor, n_digits: int) -> None:
        self.pairs = pairs
        self.n_digits = n_digits

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the given int64 indices: ``input_ids`` and ``labels``."""
        a, b = self.pairs[index].unbind(1)
        n = self.n_digits
        sign = torch.full((len(a), 1), PLUS)
        written = [_digits(a, n), sign, _digits(b, n), sign + 1, _digits(a + b, n + 1)]
        tokens = torch.cat(written, 1)
        labels = tokens[:, 1:].clone()
        labels[:, : 2 * n + 1] = IGNORED
        return {"input_ids": tokens[:, :-1], "labels": labels}


class Addition(GeneratedTask):
    """Sums a + b of two numbers with so many digits, generated; arXiv 2405.05409's addition.

    ``123+456=0579``, a token each. The pairs with both operands in a square are never trained on.
    A model that has learnt the digits' rule adds there as elsewhere.

    Validation sets, the same for every seed, of pairs that are not trained on either:

    - ``range``: any pairs outside of the square, but those of the next set;
    - ``square``: pairs in it;
    - ``edge``: pairs outside of it and within ``edge`` of it: max(low - a, a - high, low - b,
      b - high) is 1 to ``edge``, with the square from low to high, both included. The others of
      these are left to training.

    ``val/<set>/exact_match`` is the share of sums with all digits right, which is what greedy
    decoding gives too: every digit is the likeliest one after the right ones before it.

    Args:
        n_digits: Digits of an operand.
        square: The first and last number of the held-out square's sides.
        edge: How far from the square the nearest cases lie at most.
        n_train: Training pairs, none of them twice.
        n_val: Pairs per validation set.
        batch_size: Pairs per batch.
        seed: Seed of the choice of training pairs and their order.

    Attributes:
        token_class: The class of all tokens with a label: they follow from both operands.
        whole_answers: That the labels of a sequence are one answer, right or wrong as a whole.
        validation_loss: The metric that says how well training goes.
        reasoning_measure: The metric that says how the held-out square is answered.

    Raises:
        InputError: The task cannot be built; the message names the value.
    """

    token_class = "context_constrained"
    whole_answers = True
    validation_loss, reasoning_measure = "val/range/loss", "val/square/exact_match"
    vocab_size = EQUALS + 1

    def __init__(
        self,
        n_digits: int = 3,
        square: tuple[int, int] = (400, 600),
        edge: int = 10,
        n_train: int = 900_000,
        n_val: int = 1_000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_digits = n_digits
        self.square = square
        self.edge = edge
        self.n_train = n_train
        self.n_val = n_val
        self.batch_size = batch_size
        self.seed = seed
        self._check()

    @property
    def context_length(self) -> int:
        """Tokens of a sum but the last, which nothing follows."""
        return 3 * self.n_digits + 2

    def setup(self, stage: str) -> None:
        """Chooses the pairs."""
        apart = self._distance()
        fixed = torch.Generator().manual_seed(_VALIDATION_SEED)
        square, edge, outside = (
            _shuffled(where, fixed)
            for where in (apart == 0, (apart > 0) & (apart <= self.edge), apart > 0)
        )
        edge = edge[: self.n_val]
        outside = outside[~torch.isin(outside, edge)]
        validation, rest = outside[: self.n_val], outside[self.n_val :]
        self.val_sets = {
            "range": self._sums(validation),
            "square": self._sums(square[: self.n_val]),
            "edge": self._sums(edge),
        }
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(self.seed))
        self.train_set = self._sums(rest[order[: self.n_train]])

    def _sums(self, cells: Tensor) -> Sums:
        pairs = torch.stack([cells // 10**self.n_digits, cells % 10**self.n_digits], 1)
        return Sums(pairs, self.n_digits)

    def _distance(self) -> Tensor:
        """How far each pair is from the square, the larger of both operands' distances."""
        low, high = self.square
        number = torch.arange(10**self.n_digits)
        away = torch.maximum(low - number, number - high).clamp(min=0)
        return torch.maximum(away[:, None], away[None, :])

    def _check(self) -> None:
        low, high = self.square
        problem = None
        if not 1 <= self.n_digits <= 3:
            problem = f"n_digits must be 1 to 3, got {self.n_digits}"
        elif not 0 <= low <= high < 10**self.n_digits:
            problem = f"square {[low, high]} is no range of numbers of {self.n_digits} digits"
        else:
            problem = self.no_batch() or self._too_few()
        if problem:
            raise InputError(f"data (Addition): {problem}")

    def _too_few(self) -> str | None:
        """Which set there are not enough pairs for."""
        apart = self._distance()
        n_outside = int((apart > 0).sum())
        n_pairs = {
            "square": int((apart == 0).sum()),
            "edge": int(((apart > 0) & (apart <= self.edge)).sum()),
        }
        for name, n in n_pairs.items():
            if n < self.n_val:
                value = getattr(self, name)
                said = list(value) if isinstance(value, tuple) else value
                return f"{name} {said} has {n} pairs, fewer than n_val {self.n_val}"
        if n_outside < self.n_train + 2 * self.n_val:
            return (
                f"n_train {self.n_train} is more than the {n_outside - 2 * self.n_val} pairs that "
                "the square and the validation sets leave"
            )
        return None


def _shuffled(where: Tensor, generator: torch.Generator) -> Tensor:
    """The cells of a table where it is true, numbered row after row, in random order; int64."""
    cells = where.flatten().nonzero()[:, 0]
    return cells[torch.randperm(len(cells), generator=generator)]


def _digits(numbers: Tensor, n: int) -> Tensor:
    """The last n decimal digits, the first digit first; int64, shape (n_numbers, n)."""
    return numbers[:, None] // 10 ** torch.arange(n - 1, -1, -1) % 10
