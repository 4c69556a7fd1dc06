"""How likely a model takes continuations to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_gamma.data.questions import Pair

TOKENS_AT_ONCE = 4096
"""Tokens of one forward, padding included, unless one sequence is longer."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of continuations, on its device.

    Attributes:
        log_likelihood: ln of the probability of each continuation, float32, shape (n,).
        greedy: Whether each is what taking the likeliest token every time gives, shape (n,).
    """

    log_likelihood: Tensor
    greedy: Tensor


def continuation_scores(
    logits_of: Callable[[Tensor], Tensor],
    pairs: Sequence[Pair],
    context_length: int,
    device: torch.device,
) -> Scores:
    """Scores continuations of token sequences, in batches of like length.

    A sequence that is too long loses its beginning. A model must be causal: sequences are padded on
    the right, and the padding is not masked.

    Args:
        logits_of: Maps token ids, int64 of shape (batch, length), to logits (batch, length, vocab).
        pairs: Tokens, at least one, and those that continue them, one to ``context_length``.
        context_length: Most tokens that the model takes.
        device: Where it is.
    """
    where: dict[tuple[int, ...], list[int]] = {}
    for i, (context, continuation) in enumerate(pairs):
        seen = (context + continuation)[-(context_length + 1) : -1]
        where.setdefault(tuple(seen), []).append(i)
    order: list[int] = []
    found: list[tuple[Tensor, Tensor]] = []
    for batch in _batches(list(where)):
        asked = [i for seen in batch for i in where[seen]]
        rows = [row for row, seen in enumerate(batch) for _ in where[seen]]
        ids = pad_sequence([torch.tensor(seen) for seen in batch], batch_first=True).to(device)
        ends = [len(batch[row]) for row in rows]
        found.append(_score(logits_of(ids), rows, ends, [pairs[i][1] for i in asked]))
        order += asked
    if not order:
        return Scores(
            torch.zeros(0, device=device), torch.zeros(0, dtype=torch.bool, device=device)
        )
    back = torch.tensor(order).argsort().to(device)
    likelihood, greedy = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return Scores(likelihood, greedy)


def _batches(sequences: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Sequences of like length, the longest first."""
    rest = sorted(sequences, key=len, reverse=True)
    while rest:
        n = max(1, TOKENS_AT_ONCE // len(rest[0]))
        yield rest[:n]
        rest = rest[n:]


def _score(
    logits: Tensor, rows: list[int], ends: list[int], continuations: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Log-likelihood and greediness of continuations whose prediction ends at a place of a row."""
    device = logits.device
    sizes = torch.tensor([len(continuation) for continuation in continuations])
    places = [torch.arange(e - len(c), e) for e, c in zip(ends, continuations, strict=True)]
    row = torch.tensor(rows).repeat_interleave(sizes).to(device)
    of = torch.arange(len(rows)).repeat_interleave(sizes).to(device)
    target = torch.tensor([token for c in continuations for token in c]).to(device)
    chosen = logits[row, torch.cat(places).to(device)].float()
    each = chosen.log_softmax(-1).gather(1, target[:, None])[:, 0]
    missed = (chosen.argmax(-1) != target).float()
    zero = torch.zeros(len(rows), device=device)
    return zero.index_add(0, of, each), zero.index_add(0, of, missed) == 0
