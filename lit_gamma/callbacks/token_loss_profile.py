"""Token loss profile: which of the tokens of a batch have which loss?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_gamma.callbacks.schedule import Schedule
from lit_gamma.callbacks.token_loss import TokenLoss

EDGES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0)
"""Lower edges of the histogram's bins, nats; a bin reaches up to the next edge, the last to ∞."""

CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""Largest context of each bin, tokens; a bin begins after the one before, the last has no end."""

_SHARES = {f"share_from_{edge:g}": edge for edge in EDGES}
_MEANS = {f"mean_at_{context}": context for context in CONTEXTS}


class TokenLossProfile(TokenLoss):
    """Records a histogram of the per-token training loss, and its mean by position in the context.

    As :class:`TokenLoss` from the training forward itself. A token's context are the tokens that
    its prediction sees: one at the first position. Loss of another shape than (batch, length) has
    no positions. Token frequencies are left to a fixed set of tokens, see :class:`ProbeLoss`.

    Logged, as ``token_loss_profile/<quantity>``, NaN (not shown) where a bin has no tokens:

    ============= ========================================================================== ======
    quantity      meaning                                                                    range
    ============= ========================================================================== ======
    mean_at_C     mean loss, nats, of tokens with more than C/2 and at most C of context: C  0 .. ∞
                  = 1, 2, 4, ..., 2048, with no end to the last
    share_from_E  share of the tokens whose loss is at least E nats and less than the next   0 .. 1
                  edge: E = 0, 0.01, 0.03, 0.1, 0.3, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16
    ============= ========================================================================== ======

    Args:
        schedule: The steps to record; by default the first ten and log-spaced ones.
        overhead: See :class:`TrajectoryCallback`.
        token_loss: See :class:`TokenLoss`.
    """

    default_schedule = Schedule(dense_until=10, per_decade=10)
    meanings: ClassVar[Mapping[str, str]] = {
        **{
            name: f"mean loss of the tokens with {c // 2 + 1} .. {c if c < 2048 else '∞'} tokens "
            "of context, nats"
            for name, c in _MEANS.items()
        },
        **{
            name: f"share of the tokens with a loss in [{low:g}, {high:g}) nats; 0..1"
            for (name, low), high in zip(_SHARES.items(), (*EDGES[1:], math.inf), strict=True)
        },
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {
        "loss by context": list(_MEANS),
        "share of tokens by loss": list(_SHARES),
    }

    def measure(self, outputs: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """See :class:`BatchTrajectory`."""
        sums = torch.stack([_sums(output["token_loss"].float()) for output in outputs]).sum(0)
        if dist.is_initialized():
            dist.all_reduce(sums)
        (loss, tokens), at_least = sums[: -len(EDGES)].view(2, -1), sums[-len(EDGES) :]
        beyond = torch.cat([at_least[1:], at_least.new_zeros(1)])
        return {
            **dict(zip(_MEANS, loss / tokens, strict=True)),
            **dict(zip(_SHARES, (at_least - beyond) / at_least[0], strict=True)),
        }


def _sums(loss: Tensor) -> Tensor:
    """Loss and number of the tokens of each bin of context, and how many are above each edge."""
    at_least = torch.stack([(loss >= edge).sum() for edge in EDGES])
    if loss.ndim != 2:
        return torch.cat([loss.new_zeros(2 * len(CONTEXTS)), at_least])
    by_position = torch.stack([loss.nansum(0), (~loss.isnan()).sum(0)])
    begins = [context // 2 for context in CONTEXTS]
    bins = [by_position[:, a:b].sum(1) for a, b in zip(begins, (*CONTEXTS[:-1], None), strict=True)]
    return torch.cat([*torch.stack(bins, dim=1), at_least])
