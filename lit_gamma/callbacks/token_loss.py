"""Token loss: how is the loss of a batch spread over its tokens?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from lit_gamma.recording.batches import BatchTrajectory
from lit_gamma.recording.run import Run
from lit_gamma.trajectory.table import Quantity

_SORTABLE = 2**24  # Values that torch takes the quantiles of.
_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


class TokenLoss(BatchTrajectory):
    """Records the distribution of the per-token training loss, from the training forward itself.

    ``training_step`` returns ``token_loss``, or a function makes it from what ``training_step``
    returns: detached, in nats, NaN where a label is ignored. The values at step t are the loss of
    W_t on the batch that made W_(t+1).

    Several ranks may have batches of different lengths. The mean is over all tokens; quantiles are
    over as many of each rank, evenly spread, as the largest batch had when recording began.

    Logged as ``1_token_loss/<quantity>``: the mean and the 95 % quantile; the file has
    the ``quantities`` below, of the tokens that have a label. A uniform guess reads ln(vocab_size).

    Args:
        schedule: The steps to record.
        token_loss: Called with what ``training_step`` returned and the batch, returns the loss of
            every token, of any shape. By default it is taken from the output's ``token_loss``.
    """

    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "mean", "mean loss of the tokens that have a label", "nats", chart="loss per token"
        ),
        *(
            Quantity(
                name,
                f"{q:.0%} quantile of their loss",
                "nats",
                chart="loss per token" if name == "q95" else None,
            )
            for name, q in _QUANTILES.items()
        ),
    )
    section = "1"

    @override
    def start(self, run: Run) -> None:
        self._per_rank: int | None = None
        super().start(run)

    @override
    def kept(self, outputs: Any, batch: Any) -> Mapping[str, Tensor]:
        return {"token_loss": self.token_loss_of(outputs, batch)}

    @override
    def measure(self, outputs: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        loss = torch.cat([output["token_loss"].flatten() for output in outputs]).float()
        if dist.is_initialized():
            return self._of_all_ranks(loss)
        return {"mean": loss.nanmean(), "token_loss": loss}

    def _of_all_ranks(self, loss: Tensor) -> dict[str, Tensor]:
        """Gathers equally many values of every rank: their number is agreed on once, and waits."""
        if self._per_rank is None:
            most = torch.tensor(max(1, len(loss)), device=loss.device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            self._per_rank = int(most)
        n, kept = self._per_rank, loss
        if len(loss) > n:
            kept = loss[torch.arange(n, device=loss.device) * len(loss) // n]
        sums = torch.stack([loss.nansum(), (~loss.isnan()).sum().float()])
        sent = F.pad(torch.cat([sums, kept]), (0, n - len(kept)), value=math.nan)
        parts = [torch.empty_like(sent) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, sent)
        gathered = torch.stack(parts)
        total, n_tokens = gathered[:, :2].sum(0)
        return {"mean": total / n_tokens, "token_loss": gathered[:, 2:].flatten()}

    @override
    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        loss = measured["token_loss"]
        loss = loss[:, :: max(1, -(-loss.shape[1] // _SORTABLE))]
        if not loss.shape[1]:
            loss = loss.new_full((len(loss), 1), math.nan)
        quantiles = torch.nanquantile(loss, _levels(loss.device), dim=1).unbind()
        return {"mean": measured["mean"], **dict(zip(_QUANTILES, quantiles, strict=True))}


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(list(_QUANTILES.values()), device=device)
