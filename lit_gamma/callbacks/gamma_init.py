"""γ-initialization for anyone's LightningModule."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lit_gamma.errors import InputError
from lit_gamma.init.audit import Audit
from lit_gamma.init.rule import Preset, ResidualScale, checked_rates, gamma_init_
from lit_gamma.recording.lightning_run import tensorboard_writer
from lit_gamma.weights.parameters import Roles

_OF_TUNERS = (".lr_find_", ".scale_batch_size_")
"""How Lightning's tuners name the file in which they keep the start, to put it back."""


class GammaInit(Callback):
    """Draws the weights of a module by the γ rule before the first step of a fresh fit.

    Nothing is drawn on a resume, from whatever checkpoint, when fit is called again on a trainer
    that has taken steps, or when Hugging Face's ``from_pretrained`` has loaded weights. Weights put
    into the module in another way (``load_from_checkpoint``) cannot be told from fresh ones and are
    overwritten: leave the callback out there.

    The weights depend on the seed alone: not on the number of processes, nor on the kind of device,
    since the CPU draws them. The audit is printed per role; TensorBoard's *Text* has all of it.

    Args:
        gamma: The initialization rate γ: std = d_in^(-γ), see :func:`lit_gamma.gamma_init_`. None
            if ``std`` is given.
        overrides: γ for groups of roles: embedding, attention_qk, attention_vo, mlp, lm_head.
        residual_scale: ``depth`` for GPT-2's 1/sqrt(2 n_layers) on residual projections.
        preset: ``complexity_control`` for the released code of arXiv 2501.08537.
        roles: Roles that names do not tell, see :func:`lit_gamma.neurons`. For the callbacks that
            record, give the module an attribute ``neuron_roles`` instead.
        seed: Seed of the weights; by default that of ``seed_everything``, or else of the process.
        std: One σ for every matrix, in place of γ; 0.02 is usual.

    Attributes:
        audit: What was drawn; None until then, and after a resume.
    """

    def __init__(
        self,
        gamma: float | None = 1.0,
        overrides: dict[str, float] | None = None,
        residual_scale: ResidualScale = "none",
        preset: Preset | None = None,
        roles: Roles | None = None,
        seed: int | None = None,
        std: float | None = None,
    ) -> None:
        checked_rates(gamma, overrides or {}, std)
        self.gamma = gamma
        self.std = std
        self.overrides = overrides
        self.residual_scale = residual_scale
        self.preset = preset
        self.roles = roles
        self.seed = seed
        self.audit: Audit | None = None
        self._restored = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Notes whether the user resumes, before a learning-rate finder loads files of its own."""
        path = trainer.ckpt_path
        self._restored = path is not None and not Path(path).name.startswith(_OF_TUNERS)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes that training goes on; a learning-rate finder puts back the start, at step 0."""
        self._restored |= checkpoint.get("global_step", 0) > 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the weights, unless they come from training."""
        if self._restored or trainer.global_step > 0:
            self._restored = False
            rank_zero_info("GammaInit: training goes on, the weights are left as they are")
            return
        if any(getattr(p, "_is_hf_initialized", False) for p in pl_module.parameters()):
            rank_zero_warn(
                "GammaInit: from_pretrained has loaded weights; all are left as they are"
            )
            return
        generator = torch.Generator().manual_seed(self._shared_seed(trainer))
        self.audit = gamma_init_(
            pl_module,
            self.gamma,
            self.overrides,
            self.residual_scale,
            self.preset,
            generator,
            self.roles,
            self.std,
        )
        if not self.audit:
            raise InputError(
                f"GammaInit found no weight to draw in {type(pl_module).__name__}: "
                f"{self.audit.summary()}"
            )
        rule = f"gamma {self.gamma}" if self.std is None else f"std {self.std}"
        rank_zero_info(f"GammaInit, {rule}:\n{self.audit.summary()}")
        writer = tensorboard_writer(trainer)
        if writer is not None:
            writer.add_text("gamma_init/audit", f"```\n{self.audit}\n```")

    def _shared_seed(self, trainer: Trainer) -> int:
        """The same on every process."""
        seed = self.seed if self.seed is not None else os.environ.get("PL_GLOBAL_SEED")
        own = torch.initial_seed() if seed is None else int(seed)
        return int(trainer.strategy.broadcast(own))
