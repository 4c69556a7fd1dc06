"""The LightningModule: a γ-initialized transformer, its loss, optimizer and validation metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_gamma.batch import IGNORED, token_loss
from lit_gamma.errors import InputError
from lit_gamma.init.rule import Preset, ResidualScale, gamma_init_
from lit_gamma.model.muon import optimizer_of
from lit_gamma.model.optimizer import LRAndWeightDecay, OptimizerConfig
from lit_gamma.model.pretrained import start_from_
from lit_gamma.model.transformer import Transformer, TransformerConfig


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, dict) else asdict(config)


class _EvalMetrics(nn.Module):
    """The metrics of one validation set; its sequences may be right or wrong as a whole too."""

    def __init__(self, vocab_size: int, whole_answers: bool) -> None:
        super().__init__()
        # torchmetrics' Perplexity takes the log of a softmax: a loss above 103 nats would read inf.
        self.loss = MeanMetric(nan_strategy="disable")  # A diverged run reads NaN.
        self.accuracy = MulticlassAccuracy(vocab_size, average="micro", ignore_index=IGNORED)
        self.exact_match = MeanMetric() if whole_answers else None

    def forward(self, logits: Tensor, labels: Tensor) -> None:
        self.loss.update(token_loss(logits, labels)[labels != IGNORED])
        self.accuracy.update(logits.argmax(-1), labels)
        if self.exact_match is not None:
            right = (logits.argmax(-1) == labels) | (labels == IGNORED)
            self.exact_match.update(right.all(-1).float())

    def compute(self) -> dict[str, Tensor]:
        """Returns the metrics over all batches since the last call."""
        loss = self.loss.compute()
        found = {"loss": loss, "perplexity": loss.exp(), "accuracy": self.accuracy.compute()}
        if self.exact_match is not None:
            found["exact_match"] = self.exact_match.compute()
        return found


class LanguageModel(LightningModule):
    """A transformer language model, γ-initialized.

    Args:
        transformer: The model's shape.
        gamma: The initialization rate γ: std = d_in^(-γ), see :func:`lit_gamma.gamma_init_`. None
            if ``init_std`` is given.
        gamma_overrides: γ for groups of roles: embedding, attention_qk, attention_vo, mlp, lm_head.
        residual_scale: ``depth`` for GPT-2's 1/sqrt(2 n_layers) on residual projections.
        init_preset: ``complexity_control`` for the released code of arXiv 2501.08537.
        optimizer: AdamW and its schedule.
        compile: Compile the transformer with ``torch.compile``.
        activation_checkpointing: Compute activations again in the backward pass, in place of
            keeping them: less memory, a third more work.
        init_std: One σ for every matrix, in place of γ; 0.02 is usual.
        init_from: A folder whose weights to begin with: a Llama of ``transformers``, or an export.
            Nothing is drawn then, and γ is not looked at.

    Attributes:
        init_audit: Realised against expected std per tensor, as drawn, or where the weights are
            from.
    """

    def __init__(
        self,
        transformer: TransformerConfig,
        gamma: float | None = 1.0,
        gamma_overrides: dict[str, float] | None = None,
        residual_scale: ResidualScale = "none",
        init_preset: Preset | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),
        compile: bool = False,
        activation_checkpointing: bool = False,
        init_std: float | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        # A checkpoint holds plain values, so that it opens without this package's classes.
        transformer = TransformerConfig(**_plain(transformer))
        optimizer = OptimizerConfig(**_plain(optimizer))
        drawn_by = {
            "gamma": gamma,
            "init_std": init_std,
            "gamma_overrides": gamma_overrides,
            "residual_scale": residual_scale,
            "init_preset": init_preset,
        }
        self.save_hyperparameters(
            {
                "transformer": asdict(transformer),
                **(drawn_by if init_from is None else dict.fromkeys(drawn_by)),
                "init_from": init_from,
                "optimizer": asdict(optimizer),
            },
            logger=False,
        )
        self.optimizer_config = optimizer
        self.compile_transformer = compile
        self.transformer = Transformer(transformer)
        self.transformer.activation_checkpointing = activation_checkpointing
        if init_from is None:
            self.init_audit = gamma_init_(
                self.transformer, gamma, gamma_overrides, residual_scale, init_preset, std=init_std
            )
        else:
            self.init_audit = start_from_(self.transformer, init_from)
        self.eval_metrics = nn.ModuleDict()

    def configure_model(self) -> None:
        """Shards the weights (FSDP2) under Lightning's ModelParallelStrategy, then compiles."""
        mesh = self.device_mesh
        if mesh is not None and mesh["tensor_parallel"].size() > 1:
            raise InputError(
                f"LanguageModel does not split its layers: tensor_parallel_size is "
                f"{mesh['tensor_parallel'].size()}; set it to 1, and data_parallel_size to the "
                "number of devices"
            )
        if mesh is not None and not isinstance(self.transformer, FSDPModule):
            for part in (*self.transformer.blocks, self.transformer):
                fully_shard(part, mesh=mesh["data_parallel"])
        if self.compile_transformer:
            self.transformer.compile()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another shape, or settings that a resume would not follow."""
        trained_with = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        theirs = trained_with.get("transformer", {})
        ours = asdict(self.transformer.config)
        other = [name for name in ours if theirs.get(name, ours[name]) != ours[name]]
        if other:
            listed = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in other)
            raise InputError(
                f"the checkpoint's model has {listed}; give the config and the data (its tokenizer "
                "decides vocab_size) that it was trained with"
            )
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._refuse_what_a_resume_ignores(trained_with)

    def _refuse_what_a_resume_ignores(self, trained_with: Mapping[str, Any]) -> None:
        """The weights are drawn, and the optimizer's state holds its settings."""
        drawn = ("gamma", "init_std", "gamma_overrides", "residual_scale", "init_preset")
        names = ("init_from", *drawn)
        pairs = {n: (trained_with[n], self.hparams[n]) for n in names if n in trained_with}
        if all(pairs.get("init_from", [None])):
            del pairs["init_from"]  # The folder may have moved.
        theirs, ours = trained_with.get("optimizer", {}), self.hparams["optimizer"]
        kept = (name for name in ("name", "lr", "weight_decay", "betas") if name in theirs)
        pairs |= {f"optimizer.{name}": (theirs[name], ours[name]) for name in kept}
        for name, (before, now) in pairs.items():
            if _listed(before) != _listed(now):
                raise InputError(
                    f"model.{name} is {now}, but the checkpoint was trained with {before}, which a "
                    f"resume goes on with: give {before}, or train anew"
                )

    def forward(self, input_ids: Tensor, document_ids: Tensor | None = None) -> Tensor:
        """Logits of shape (batch, length, vocab_size); see :class:`Transformer`."""
        logits: Tensor = self.transformer(input_ids, document_ids)
        return logits

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Mean cross-entropy over the labels that are not ignored.

        Returns:
            ``loss``, and ``token_loss``, detached, in nats, shape (batch, length), NaN where the
            label is ignored. Callbacks read it; there is no second forward.
        """
        losses = token_loss(self._logits(batch), batch["labels"])
        counted = batch["labels"] != IGNORED
        loss = losses.sum() / counted.sum()
        self.log("train/loss", loss.detach(), prog_bar=True)
        return {"loss": loss, "token_loss": losses.detach().where(counted, math.nan)}

    def validation_step(
        self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Updates loss, perplexity and accuracy of the named validation set."""
        metrics = self.eval_metrics[self._eval_names()[dataloader_idx]]
        metrics(self._logits(batch).float(), batch["labels"])

    test_step = validation_step

    def on_validation_epoch_start(self) -> None:
        """Makes the metrics of each named set once the loaders are known."""
        vocab_size = self.transformer.config.vocab_size
        whole_answers = getattr(self.trainer.datamodule, "whole_answers", False)  # type: ignore[attr-defined]
        # Anew each time: state made in inference mode (trainer.validate) cannot be updated in fit.
        self.eval_metrics = nn.ModuleDict(
            {
                name: _EvalMetrics(vocab_size, whole_answers).to(self.device)
                for name in self._eval_names()
            }
        )

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        """Logs ``val/NAME/loss`` (nats per token), ``perplexity`` and ``accuracy``.

        Where the data says ``whole_answers``, ``exact_match`` too, the share of sequences whose
        labels are all predicted.
        """
        stage = "test" if self.trainer.testing else "val"
        for name, metrics in self.eval_metrics.items():
            assert isinstance(metrics, _EvalMetrics)
            for key, value in metrics.compute().items():
                self.log(f"{stage}/{name}/{key}", value, prog_bar=key == "accuracy", sync_dist=True)

    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW or Muon, weight decay on matrices only, the schedules stepped at every step."""
        config = self.optimizer_config
        fused = self.trainer.precision != "16-mixed"  # Its gradient scaler rules clipping out then.
        optimizer = optimizer_of(self, config, fused)
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise InputError(
                "the learning rate needs an end: set trainer.max_steps or trainer.max_epochs"
            )
        schedule = LRAndWeightDecay(
            optimizer,
            lambda step: config.lr_factor(step, int(steps)),
            lambda step: config.weight_decay_at(step, int(steps)),
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as the trainer says, under ``bf16-mixed`` too.

        Lightning refuses a fused optimizer there for the sake of a gradient scaler, which bfloat16
        does not have.
        """
        if self.trainer.precision == "bf16-mixed" and gradient_clip_algorithm != "value":
            if gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            return
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        logits: Tensor = self(batch["input_ids"], batch.get("document_ids"))
        return logits

    def _eval_names(self) -> list[str]:
        loaders = (
            self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        )
        if isinstance(loaders, dict):
            return list(loaders)
        return [str(i) for i in range(len(loaders) if isinstance(loaders, list) else 1)]
