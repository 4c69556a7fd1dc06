"""Token loss: how is the loss of a batch spread over its tokens?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_gamma.callbacks.batches import BatchTrajectory

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


class TokenLoss(BatchTrajectory):
    """Records the distribution of the per-token training loss, from the training forward itself.

    ``training_step`` must return ``token_loss``: detached, in nats, NaN where a label is ignored,
    at most 2^24 tokens per optimizer step, equally many on every rank. The values at step t are the
    loss of W_t on the batch that made W_(t+1).

    Logged, as ``token_loss/<quantity>``, in nats, 0 .. ∞; a uniform guess reads ln(vocab_size):

    ========================= =====================================================
    quantity                  meaning
    ========================= =====================================================
    mean                      mean over the tokens that have a label
    q05, q25, median, q75, q95 quantiles over these tokens
    ========================= =====================================================

    Args:
        schedule: The steps to record.
        overhead: See :class:`TrajectoryCallback`.
    """

    meanings: ClassVar[Mapping[str, str]] = {
        "mean": "mean loss of the tokens that have a label, nats",
        **{name: f"{q:.0%} quantile of their loss, nats" for name, q in _QUANTILES.items()},
    }
    charts: ClassVar[Mapping[str, Sequence[str]]] = {"loss per token": ["mean", *_QUANTILES]}

    def measure(self, outputs: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """See :class:`BatchTrajectory`."""
        loss = torch.cat([output["token_loss"].flatten() for output in outputs]).float()
        if dist.is_initialized():
            parts = [torch.empty_like(loss) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, loss)
            loss = torch.cat(parts)
        levels = torch.tensor(list(_QUANTILES.values()), device=loss.device)
        quantiles = torch.nanquantile(loss, levels).unbind()
        return {"mean": loss.nanmean(), **dict(zip(_QUANTILES, quantiles, strict=True))}
