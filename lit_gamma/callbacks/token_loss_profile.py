"""Token loss profile: which of the tokens of a batch have which loss?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lit_gamma.recording.batches import BatchTrajectory
from lit_gamma.recording.described import CountedText
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.table import Quantity, Table

EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Lower edges of the histogram's bins, nats; a bin reaches up to the next edge, the last to ∞."""

CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Largest context of each bin, tokens; a bin begins after the one before, the last has no end."""

FREQUENCIES = (10, 100, 1_000, 10_000, 100_000)
"""Tokens of bin N are less often than 1 in N / 10, and at least 1 in N; the last has no end."""

_SHOWN = (1, 16, 256, *FREQUENCIES[::2])
_SHARES = {f"share_from_{edge:g}": edge for edge in EDGES}
_MEANS = {f"mean_at_{context}": context for context in CONTEXTS}
_FREQUENT = {f"mean_of_1_in_{n}": n for n in FREQUENCIES}


class TokenLossProfile(BatchTrajectory):
    """Records a histogram of the per-token training loss, and its mean by position and frequency.

    As :class:`TokenLoss` from the training forward itself. A token's context are the tokens that
    its prediction sees: one at the first position. Loss of another shape than (batch, length) has
    no positions. The frequency of a token is its probability under the unigram model of the
    training text, by the DataModule's ``ngram_loss``; without one, or without ``labels`` of the
    shape of the loss in the batch, there are no frequencies.

    Logged as ``5_token_loss_profile/<quantity>``, not shown where a bin has no tokens: some of
    the means below; the file has all ``quantities``, NaN without tokens.

    Args:
        schedule: The steps to record; by default the first ten and log-spaced ones.
        token_loss: See :class:`TokenLoss`.
    """

    default_schedule = Schedule(dense_until=10, per_decade=10)
    quantities: ClassVar[Sequence[Quantity]] = (
        *(
            Quantity(
                name,
                f"mean loss of the tokens with {c // 2 + 1} .. {c if c < 2048 else '∞'} tokens "
                "of context",
                "nats",
                chart="loss by context" if c in _SHOWN else None,
            )
            for name, c in _MEANS.items()
        ),
        *(
            Quantity(
                name,
                f"mean loss of the tokens that are less than 10 in {n}"
                f"{f' and at least 1 in {n}' if n < FREQUENCIES[-1] else ''} of the training text",
                "nats",
                chart="loss by frequency" if n in _SHOWN else None,
            )
            for name, n in _FREQUENT.items()
        ),
        *(
            Quantity(
                name,
                f"share of the tokens with a loss in [{low:g}, {high:g}) nats",
                range="0..1",
            )
            for (name, low), high in zip(_SHARES.items(), (*EDGES[1:], math.inf), strict=True)
        ),
    )

    section = "5"
    _bin_of_token: Tensor | None = None

    @override
    def table(self) -> Table:
        table = super().table()
        if self._bin_of_token is not None:
            return table
        known = [replace(q, chart=None) if q.name in _FREQUENT else q for q in table.quantities]
        return replace(table, quantities=known)

    @override
    def start(self, run: Run) -> None:
        if isinstance(run.data, CountedText):
            ids = np.arange(run.data.vocab_size)[:, None]
            nats = torch.from_numpy(run.data.ngram_loss(ids)[:, 0])
            bins = torch.bucketize(nats, torch.tensor(FREQUENCIES[:-1]).log())
            self._bin_of_token = bins.where(~nats.isnan(), len(FREQUENCIES)).to(run.device)
        super().start(run)

    @override
    def kept(self, outputs: Any, batch: Any) -> Mapping[str, Tensor]:
        loss = self.token_loss_of(outputs, batch)
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if self._bin_of_token is None or labels is None or labels.shape != loss.shape:
            return {"token_loss": loss}
        return {"token_loss": loss, "bins": self._bin_of_token[labels.clamp(min=0)]}

    @override
    def measure(self, outputs: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        sums = torch.stack([_sums(**output) for output in outputs]).sum(0)
        if dist.is_initialized():
            dist.all_reduce(sums)
        (loss, tokens), at_least = sums[: -len(EDGES)].view(2, -1), sums[-len(EDGES) :]
        beyond = torch.cat([at_least[1:], at_least.new_zeros(1)])
        return {
            **dict(zip([*_MEANS, *_FREQUENT], loss / tokens, strict=True)),
            **dict(zip(_SHARES, (at_least - beyond) / at_least[0], strict=True)),
        }


def _sums(token_loss: Tensor, bins: Tensor | None = None) -> Tensor:
    """Loss of each bin, its number of tokens, and how many tokens are above each edge."""
    loss = token_loss.float()
    at_least = torch.stack([(loss >= edge).sum() for edge in EDGES])
    summed = torch.stack([loss.nan_to_num(), (~loss.isnan()).float()])
    parts = [_by_context(summed), _by_frequency(summed, bins)]
    return torch.cat([*torch.cat(parts, dim=1), at_least])


def _by_context(summed: Tensor) -> Tensor:
    if summed.ndim != 3:
        return summed.new_zeros(2, len(CONTEXTS))
    by_position = summed.sum(1)
    begins = [context // 2 for context in CONTEXTS]
    bins = [by_position[:, a:b].sum(1) for a, b in zip(begins, (*CONTEXTS[:-1], None), strict=True)]
    return torch.stack(bins, dim=1)


def _by_frequency(summed: Tensor, bins: Tensor | None = None) -> Tensor:
    sums = summed.new_zeros(2, len(FREQUENCIES) + 1)  # The last: of unknown frequency.
    if bins is not None:
        sums.index_add_(1, bins.flatten(), summed.flatten(1))
    return sums[:, :-1]
