"""The anchor-function task: does a model compose, or memorize by symmetry?"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_gamma.data.generated import GeneratedTask
from lit_gamma.errors import InputError

_VALIDATION_SEED = 0  # The same for every run; held-out keys and pairs keep training apart.
Pair = tuple[int, int]


class AnchorSequences(Dataset[dict[str, Tensor]]):
    """Sequences with one answer each, predicted at the last token.

    Args:
        input_ids: int64, shape (n, context_length).
        answers: int64, shape (n,).
        pairs: The anchors, int64, shape (n, 2).
    """

    def __init__(self, input_ids: Tensor, answers: Tensor, pairs: Tensor) -> None:
        self.input_ids = input_ids
        self.answers = answers
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: Tensor) -> dict[str, Tensor]:
        """Returns the batch of the given int64 indices: ``input_ids`` and ``labels``."""
        input_ids = self.input_ids[index]
        labels = torch.full_like(input_ids, -100)
        labels[:, -1] = self.answers[index]
        return {"input_ids": input_ids, "labels": labels}


class AnchorComposition(GeneratedTask):
    """Anchor functions of arXiv 2405.05409 and 2501.08537, generated.

    A sequence of uniform tokens holds, at a random position, a key x followed by two anchors. Each
    anchor a stands for x ↦ x + anchors[a]; the answer, asked for at the last token, is their
    composition. An odd pair is answered composition + shift in training; a held-out pair never
    appears there. On a held-out pair whose mirror image is odd, a model that composes answers the
    composition, and one that took the pairs for symmetric answers as the mirror image.

    Keys are held out too: (x, position) with x mod context_length = position is never trained on.

    Validation sets: ``seen``, trained pairs on held-out keys; ``unseen``, the held-out pairs.

    Args:
        context_length: Tokens per sequence.
        token_range: First and last of the ordinary tokens, from which the keys are drawn too.
        anchors: Each anchor token with the number it adds.
        odd_pairs: (first anchor, second anchor, shift) of the pairs answered differently.
        held_out_pairs: (first anchor, second anchor) of the pairs kept from training.
        n_train: Training sequences per epoch.
        n_val: Sequences per validation set.
        batch_size: Sequences per batch.
        seed: Seed of the training sequences and their order.

    Attributes:
        token_class: The class of all tokens with a label, see
            :mod:`lit_gamma.trajectory.token_classes`: the answer follows from the key and both
            anchors, wherever they are. The other tokens are random, and have none.
        validation_loss: The metric that says how well training goes.
        reasoning_measure: The metric that says how the held-out pairs are answered.

    Raises:
        InputError: The task cannot be built; the message names the value.
    """

    token_class = "context_constrained"
    validation_loss, reasoning_measure = "val/seen/loss", "val/unseen/accuracy"

    def __init__(
        self,
        context_length: int = 9,
        token_range: tuple[int, int] = (20, 99),
        anchors: dict[int, int] | None = None,
        odd_pairs: list[tuple[int, int, int]] | None = None,
        held_out_pairs: list[Pair] | None = None,
        n_train: int = 640_000,
        n_val: int = 1_000,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.token_range = token_range
        self.anchors = {1: 5, 2: 1, 3: -2, 4: -8} if anchors is None else dict(anchors)
        odd = [(3, 4, 4)] if odd_pairs is None else odd_pairs
        self.odd_pairs: dict[Pair, int] = {(first, second): shift for first, second, shift in odd}
        self.held_out_pairs: list[Pair] = (
            [(4, 3)] if held_out_pairs is None else [(a, b) for a, b in held_out_pairs]
        )
        self.n_train = n_train
        self.n_val = n_val
        self.batch_size = batch_size
        self.seed = seed
        self._check()

    @property
    def vocab_size(self) -> int:
        """One more than the largest token that a sequence or an answer can hold."""
        largest_shift = max(self.shift(pair) for pair in self._pairs)
        return max(self.token_range[1] + max(0, largest_shift), *self.anchors) + 1

    @property
    def trained_pairs(self) -> list[Pair]:
        """Every ordered pair of anchors that training shows."""
        return [pair for pair in self._pairs if pair not in self.held_out_pairs]

    @property
    def _pairs(self) -> list[Pair]:
        return list(product(self.anchors, self.anchors))

    def composition(self, pair: Pair) -> int:
        """What composing a pair's two functions adds to the key."""
        return self.anchors[pair[0]] + self.anchors[pair[1]]

    def shift(self, pair: Pair) -> int:
        """What training adds to the key for a pair: its composition, unless the pair is odd."""
        return self.composition(pair) + self.odd_pairs.get(pair, 0)

    def sequences(
        self, n: int, pairs: list[Pair], held_out_keys: bool, generator: torch.Generator
    ) -> AnchorSequences:
        """Draws sequences, uniformly over pairs and over the allowed (key, position).

        Args:
            n: Number of sequences.
            pairs: The pairs of anchors to draw from.
            held_out_keys: Draw only the held-out (key, position), or only the trained ones.
            generator: Source of randomness.

        Returns:
            The sequences with the answers that training would give (for a held-out pair that is
            not odd: its composition).
        """
        low, high = self.token_range
        length = self.context_length
        where = self._places(held_out_keys)
        key, position = where[torch.randint(len(where), (n,), generator=generator)].unbind(1)
        drawn = torch.randint(len(pairs), (n,), generator=generator)

        input_ids = torch.randint(low, high + 1, (n, length), generator=generator)
        row = torch.arange(n)
        input_ids[row, position] = key
        anchors = torch.tensor(pairs)[drawn]
        input_ids[row, position + 1], input_ids[row, position + 2] = anchors.unbind(1)
        shifts = torch.tensor([self.shift(pair) for pair in pairs])
        return AnchorSequences(input_ids, key + shifts[drawn], anchors)

    def mirrored_answers(self, sequences: AnchorSequences) -> Tensor:
        """What a model answers that takes (a, b) for (b, a), int64 of shape (n,)."""
        turn = {pair: self.shift((pair[1], pair[0])) - self.shift(pair) for pair in self._pairs}
        turns = [turn[first, second] for first, second in sequences.pairs.tolist()]
        return sequences.answers + torch.tensor(turns)

    def setup(self, stage: str) -> None:
        """Generates the sequences."""
        generator = torch.Generator().manual_seed(self.seed)
        self.train_set = self.sequences(self.n_train, self.trained_pairs, False, generator)
        self.val_sets = {
            "seen": self._validation(self.trained_pairs, True),
            "unseen": self._validation(self.held_out_pairs, False),
        }

    def _validation(self, pairs: list[Pair], held_out_keys: bool) -> AnchorSequences:
        generator = torch.Generator().manual_seed(_VALIDATION_SEED)
        return self.sequences(self.n_val, pairs, held_out_keys, generator)

    def _places(self, held_out: bool) -> Tensor:
        """Every (key, position) that is held out, or every one that is not; shape (n, 2)."""
        low, high = self.token_range
        length = self.context_length
        places = torch.cartesian_prod(torch.arange(low, high + 1), torch.arange(length - 2))
        return places[(places[:, 0] % length == places[:, 1]) == held_out]

    def _check(self) -> None:
        low, high = self.token_range
        named = {a for pair in [*self.odd_pairs, *self.held_out_pairs] for a in pair}
        problem = None
        if self.context_length < 3:
            problem = f"context_length {self.context_length} has no room for a key and two anchors"
        elif not 0 <= low <= high:
            problem = f"token_range {[low, high]} is not an ascending range of tokens"
        elif not (len(self._places(True)) and len(self._places(False))):
            problem = (
                f"token_range {[low, high]} leaves no key to train on or none to hold out at "
                f"context_length {self.context_length}; widen it"
            )
        elif inside := [a for a in self.anchors if a < 0 or low <= a <= high]:
            problem = f"anchor {inside[0]} must be a token outside token_range {[low, high]}"
        elif unknown := sorted(named - set(self.anchors)):
            problem = f"anchor {unknown[0]} of odd_pairs or held_out_pairs is not in anchors"
        elif not self.held_out_pairs or not self.trained_pairs:
            problem = "held_out_pairs must leave at least one pair on each side"
        elif low + (smallest := min(map(self.shift, self._pairs))) < 0:
            problem = f"answer {low + smallest} is no token; raise the start of token_range, {low}"
        else:
            problem = self.no_batch()
        if problem:
            raise InputError(f"data (AnchorComposition): {problem}")
