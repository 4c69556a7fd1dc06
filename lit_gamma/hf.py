"""The recordings in Hugging Face's Trainer; the one place that needs ``transformers``."""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from lit_gamma.batch import IGNORED, token_loss
from lit_gamma.errors import InputError
from lit_gamma.files import save_checkpoint
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.loop import Recording, record

STATE = "trajectory.pt"
"""The file in a checkpoint's folder that holds how far the record goes."""


class Trajectory(TrainerCallback):
    """Records the developmental trajectory under ``transformers.Trainer``.

    ::

        Trainer(model, ..., callbacks=[Trajectory(Condensation(), TokenLoss())])

    Weights are recorded at the end of every optimizer step. The loss of the tokens is computed from
    the logits of the training forward, at the steps that are recorded; it has no second forward. It
    cannot be had where Trainer keeps the labels from the model: with ``compute_loss_func`` or label
    smoothing. The record goes on exactly when training is resumed from one of its checkpoints.

    Args:
        callbacks: What is recorded.
        run_dir: Where the record goes; ``output_dir`` by default.
        tensorboard: Write TensorBoard's files there too.
    """

    def __init__(
        self,
        *callbacks: TrajectoryCallback,
        run_dir: str | Path | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.callbacks = callbacks
        self.run_dir = run_dir
        self.tensorboard = tensorboard
        self._recording: Recording | None = None
        self._hooks: list[Any] = []

    @override
    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        self._end("interrupted")
        self._recording = record(
            model,
            self.run_dir or _output_dir(args),
            self.callbacks,
            total_steps=state.max_steps,
            state=_earlier(args, state),
            tensorboard=self.tensorboard,
        ).__enter__()
        atexit.register(self._end, "interrupted")
        if any(callback.needs_batches for callback in self.callbacks):
            self._hooks = [model.register_forward_hook(self._seen, with_kwargs=True)]

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recording is not None:
            self._recording.gradients(clipped=args.max_grad_norm > 0)

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recording is not None:
            self._recording.step()

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recording is not None:
            self._recording.write()

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._recording is not None:
            kept = self._recording.state_dict()  # On all ranks: it may gather.
            if self._recording.run.writes:
                save_checkpoint(kept, _checkpoint(args, state) / STATE)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._end("finished")

    def _seen(self, model: nn.Module, args: Any, inputs: Mapping[str, Any], outputs: Any) -> None:
        """A forward was run, of training or of an evaluation."""
        if model.training and torch.is_grad_enabled() and self._recording is not None:
            self._recording.batch(dict(inputs), _Outputs(inputs, outputs))

    def _end(self, status: str) -> None:
        if self._recording is not None:
            recording, self._recording = self._recording, None
            atexit.unregister(self._end)
            for hook in self._hooks:
                hook.remove()
            recording.finish(status)


class _Outputs(Mapping[str, Any]):
    """What a training forward gave, with the loss of its tokens if somebody asks for it."""

    def __init__(self, inputs: Mapping[str, Any], outputs: Any) -> None:
        self._inputs = inputs
        self._outputs = outputs

    @cached_property
    def _token_loss(self) -> Tensor:
        """Nats, NaN where there is no label, (batch, length - 1)."""
        labels: Tensor | None = self._inputs.get("labels")
        if labels is None:
            raise InputError(
                "Trajectory sees no labels in the model's forward, as Trainer keeps them to itself "
                "with compute_loss_func or label smoothing; record weights alone there"
            )
        logits, shifted = self._outputs.logits.detach()[:, :-1], labels[:, 1:]
        return token_loss(logits, shifted).where(shifted != IGNORED, torch.nan)

    def __getitem__(self, name: str) -> Any:
        return self._token_loss if name == "token_loss" else self._outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(("token_loss", *self._outputs))

    def __len__(self) -> int:
        return 1 + len(self._outputs)


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    return _output_dir(args) / f"checkpoint-{state.global_step}"


def _output_dir(args: TrainingArguments) -> Path:
    assert args.output_dir is not None  # Trainer has its default.
    return Path(args.output_dir)


def _earlier(args: TrainingArguments, state: TrainerState) -> dict[str, Any] | None:
    """The state in the checkpoint that training is resumed from, found by its step."""
    if state.global_step == 0:
        return None
    path = _checkpoint(args, state) / STATE
    if not path.is_file():
        raise InputError(
            f"training is resumed at step {state.global_step}, but {path} is not there, so the "
            "record cannot go on; resume from a checkpoint of a recorded run in output_dir"
        )
    kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return kept
