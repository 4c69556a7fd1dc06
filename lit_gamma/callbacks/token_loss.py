"""Token loss: how is the loss of a batch spread over its tokens?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from torch import Tensor

from lit_gamma.errors import InputError
from lit_gamma.recording.batches import BatchTrajectory
from lit_gamma.recording.schedule import Schedule

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


class TokenLossTrajectory(BatchTrajectory):
    """Records quantities of the per-token training loss, found as :class:`TokenLoss` says.

    Subclasses implement :meth:`measure`, of what :meth:`kept` returned for each micro-batch.

    Args:
        schedule: The steps to record.
        overhead: See :class:`TrajectoryCallback`.
        token_loss: See :class:`TokenLoss`.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        overhead: float | None = None,
        token_loss: Callable[[Any, Any], Tensor] | None = None,
    ) -> None:
        super().__init__(schedule, overhead)
        self.token_loss = token_loss

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Takes the loss of the batch's tokens; see :class:`BatchTrajectory`."""
        if self.due(self._step):
            outputs = self.kept(self._loss_of(outputs, batch), batch)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def kept(self, loss: Tensor, batch: Any) -> Mapping[str, Tensor]:
        """What :meth:`measure` needs of a batch and the loss of its tokens."""
        return {"token_loss": loss}

    def _loss_of(self, outputs: Any, batch: Any) -> Tensor:
        if self.token_loss is not None:
            return self.token_loss(outputs, batch).detach()
        if not isinstance(outputs, Mapping) or "token_loss" not in outputs:
            raise InputError(
                f"{type(self).__name__} finds no token_loss in what training_step returns; return "
                f"it beside loss, or give {type(self).__name__}(token_loss=function of outputs and "
                "batch)"
            )
        loss: Tensor = outputs["token_loss"]
        return loss


class TokenLoss(TokenLossTrajectory):
    """Records the distribution of the per-token training loss, from the training forward itself.

    ``training_step`` returns ``token_loss``, or a function makes it from what ``training_step``
    returns: detached, in nats, NaN where a label is ignored, at most 2^24 tokens per optimizer
    step, equally many on every rank. The values at step t are the loss of W_t on the batch that
    made W_(t+1).

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
        token_loss: Called with what ``training_step`` returned and the batch, returns the loss of
            every token, of any shape. By default it is taken from the output's ``token_loss``.
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
        return {"mean": loss.nanmean(), "token_loss": loss}

    def settle(self, measured: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """See :class:`TrajectoryCallback`: many steps' losses are sorted faster at once."""
        loss = measured["token_loss"]
        quantiles = torch.nanquantile(loss, _levels(loss.device), dim=1).unbind()
        return {"mean": measured["mean"], **dict(zip(_QUANTILES, quantiles, strict=True))}


@cache
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(list(_QUANTILES.values()), device=device)
