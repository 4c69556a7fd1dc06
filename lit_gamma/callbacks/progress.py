"""The progress bar: optimizer steps to the end of training, and how fast they go."""

from __future__ import annotations

import math
import shutil
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from lit_gamma.model.flops import flops_per_token, peak_flops
from lit_gamma.model.transformer import Transformer

_REFRESH = 0.5  # Seconds; reading the loss makes an accelerator wait.
_WIDE = 110  # Columns of a terminal that has room for speed and learning rate.


class Progress(TQDMProgressBar):
    """A bar over all optimizer steps: rate, time left, loss, and the validation metric logged last.

    A wide terminal also shows the learning rate, tokens per second and MFU, the share of the GPU's
    peak that the model's arithmetic needs (arXiv 2204.02311, appendix B: without activation
    recomputation), for GPUs that Lightning knows. Tokens are of all processes; time spent in
    validation is not counted.
    """

    BAR_FORMAT = "{desc} {n_fmt}/{total_fmt} {bar} {rate_noinv_fmt}, {remaining} left{postfix}"

    def __init__(self) -> None:
        super().__init__()
        self._since: float | None = None
        self._tokens = self._length = 0
        self._speed = 0.0
        self._peak: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the bar at the step that training starts from."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        total = trainer.estimated_stepping_batches
        bar.reset(int(total) if math.isfinite(total) else None)
        bar.initial = bar.n = trainer.global_step
        bar.set_description_str("step")
        self._peak = peak_flops(pl_module.device, str(trainer.precision))

    def on_train_epoch_start(self, *_: Any) -> None:
        """Epochs do not matter to the bar."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts tokens, and draws them now and then."""
        if self._since is None:  # The first batch warms up, or compiles.
            self._since = time.monotonic()
            return
        self._tokens += batch["input_ids"].numel() * trainer.world_size
        self._length = batch["input_ids"].shape[1]
        seconds = time.monotonic() - self._since
        last = trainer.global_step == self.train_progress_bar.total
        if self.is_enabled and (last or seconds > _REFRESH):
            self._speed = self._tokens / seconds
            self.train_progress_bar.n = trainer.global_step
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
            self._since, self._tokens = time.monotonic(), 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the time of validation out."""
        super().on_validation_end(trainer, pl_module)
        self._since, self._tokens = None, 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What stands behind the bar."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        measured = {name.removeprefix("val/"): value for name, value in shown.items()}
        loss = measured.pop("train/loss", None)
        kept = {} if loss is None else {"loss": loss}
        kept.update(list(measured.items())[-1:])
        if shutil.get_terminal_size().columns >= _WIDE:
            kept.update(self._speed_of(trainer, pl_module))
        return kept

    def _speed_of(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, str]:
        shown = {"lr": f"{trainer.optimizers[0].param_groups[0]['lr']:.2g}"}
        if self._speed:
            shown["tokens/s"] = f"{self._speed:,.0f}"
        model = getattr(pl_module, "transformer", None)
        if self._speed and self._peak and isinstance(model, Transformer):
            needed = self._speed * flops_per_token(model, self._length)
            shown["MFU"] = f"{needed / (self._peak * trainer.world_size):.1%}"
        return shown
