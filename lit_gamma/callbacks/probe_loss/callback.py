"""Probe loss: which tokens of the validation text does a run learn, and when?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lit_gamma.callbacks.probe_loss.charts import chart_classes, draw_probe
from lit_gamma.callbacks.probe_loss.tokens import describe, write_tokens
from lit_gamma.errors import InputError
from lit_gamma.probing.blocks import Batch, ProbeSet, choose_blocks, truncated_loss
from lit_gamma.probing.forward import Forward, plain_forward, undisturbed
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.described import ClassifiedTask, TokenizedText
from lit_gamma.recording.run import Run
from lit_gamma.recording.schedule import Schedule
from lit_gamma.trajectory.arrow import read_batches
from lit_gamma.trajectory.layouts import Vectors
from lit_gamma.trajectory.table import Index, Quantity
from lit_gamma.trajectory.token_classes import TokenClasses

TOKENS_AT_ONCE = 4096
"""Most tokens of one forward; with a vocabulary of 50,000 its logits take 800 MB."""


class ProbeLoss(TrajectoryCallback):
    """Records the loss of every token of a fixed set of validation blocks.

    The blocks are chosen by seed, equally many of each validation set of the DataModule (or of the
    trainer, without one), and kept in checkpoints. They are run uncompiled, in evaluation mode and
    without a trace in training, see :func:`~lit_gamma.probing.forward.undisturbed`; every rank runs
    all.

    Two files: ``probe_loss.arrow``, a row per step with the losses of all tokens in half precision,
    and ``probe_tokens.arrow``, what these tokens are, written at the start and, once training has
    ended, with what each needs to be predicted: the loss of the trained model with truncated
    contexts (:func:`lit_gamma.probing.blocks.truncated_loss`) and the class,
    :class:`~lit_gamma.trajectory.token_classes.TokenClasses`. The loss under n-gram models is
    that of the DataModule's ``ngram_loss``, if it has one; where a DataModule has a
    ``token_class``, as the anchor task does, every token is of that class.
    :func:`lit_gamma.trajectory.tokens` joins both. The metadata of both files
    holds ``probe``, the SHA-256 of token ids and labels.

    Logged, in nats, 0 .. ∞: ``5_probe_loss/loss/<set>``, the mean of a validation set; at the end
    ``5_probe_loss/class/<class>``, the mean of a class at each recorded step. Histograms, as
    ``5_probe_loss/tokens``: the losses of all tokens. Images, as ``5_probe_loss/text/<set>``, if
    the DataModule has a ``tokenizer``: the beginning of the probe, coloured from 0 (white) to the
    loss of a uniform guess (red).

    Time: one forward of the blocks per step of either schedule; at the end two for each power of
    two below the length of a block. Memory: 2 bytes per token and step until written, at most
    64 MiB; besides, of one forward, the activations and logits of :data:`TOKENS_AT_ONCE` tokens, or
    of one block if that is longer.

    Args:
        schedule: The steps to record; by default ten per factor of ten.
        blocks: Blocks in all.
        seed: Seed of the choice.
        forward: Called with the module and a batch, returns the loss of every token, (batch,
            length), anything where there is no label. By default ``token_loss`` of what
            ``training_step`` returns.
        classes: Thresholds of the classes.
        pictures: The steps of histograms and images; by default four per factor of ten.
    """

    default_schedule = Schedule(per_decade=10)
    default_pictures = Schedule(per_decade=4)
    quantities: ClassVar[Sequence[Quantity]] = (
        Quantity(
            "loss",
            "loss of each token of probe_tokens.arrow, in its order",
            "nats",
            note="half precision",
            chart="probe loss by validation set",
        ),
        Quantity(
            "class",
            "mean loss of a class at each recorded step, in TensorBoard alone",
            "nats",
            chart="probe loss by class",
            joined="mean",
        ),
    )
    section = "5"
    layout = Vectors

    def __init__(
        self,
        schedule: Schedule | None = None,
        blocks: int = 16,
        seed: int = 0,
        forward: Forward | None = None,
        classes: TokenClasses | None = None,
        pictures: Schedule | None = None,
    ) -> None:
        super().__init__(schedule, pictures)
        if blocks < 1:
            raise InputError(f"ProbeLoss: blocks must be at least 1, got {blocks}")
        self.blocks = blocks
        self.seed = seed
        self.forward = forward or _token_loss
        self.classes = classes or TokenClasses()
        self._probe: ProbeSet | None = None

    @property
    def probe(self) -> ProbeSet:
        """The blocks, on the module's device; known from the start of training."""
        assert self._probe is not None
        return self._probe

    @override
    def items(self, pl_module: Any) -> tuple[Index, Sequence[str]]:
        """One per token, none before the start of training."""
        if self._probe is None:
            return {}, []
        rows = self.probe.labelled.nonzero()[:, 0].tolist()
        return {"token": range(len(rows))}, [self.probe.sets[row] for row in rows]

    @override
    def about(self) -> Mapping[str, Any]:
        return {} if self._probe is None else {"probe": self.probe.digest}

    @override
    def start(self, run: Run) -> None:
        if run.step == 0:
            self._probe = None
        if self._probe is None:
            with undisturbed(run.module):  # Reading a loader draws random numbers.
                self._probe = choose_blocks(_sets_of(run), self.blocks, self.seed)
        on_device = move_data_to_device(self.probe.batch, run.device)
        self._probe = replace(self.probe, batch=on_device)
        self._at = self.probe.labelled.flatten().nonzero()[:, 0]
        self._newest = -1, torch.empty(0)
        # A module that takes no shorter sequences is to fail now, not at the end.
        with run.probing():
            self._forward({name: rows[:1, :1] for name, rows in on_device.items()})
        self._tokens = describe(self.probe, run.data) if run.writes else {}
        super().start(run)
        self._write_tokens()

    @override
    def observe(self, trainer: Any, pl_module: Any) -> Mapping[str, Tensor]:
        if self._newest[0] != self.run.step:
            with self.run.probing():
                loss = self._forward(self.probe.batch)
            self._newest = self.run.step, loss.flatten()[self._at].half()
        return {"loss": self._newest[1]}

    @override
    def draw(self, trainer: Any, pl_module: Any, writer: SummaryWriter | None) -> None:
        losses = self.observe(trainer, pl_module)["loss"]
        if writer is not None:
            data = self.run.data
            text = isinstance(data, TokenizedText)
            uniform = math.log(data.tokenizer.vocab_size) if text else None
            shown = losses.float().cpu().numpy()
            draw_probe(writer, self.group, self.run.step, shown, self._tokens, uniform)

    @override
    def finish(self, completed: bool = True) -> None:
        if completed:
            with self.bill.billed("contexts"), torch.no_grad():
                needed = self._needed_context()
            if self.run.writes:
                self._classify({name: loss.cpu().numpy() for name, loss in needed.items()})
        super().finish(completed)

    @override
    def state_dict(self) -> dict[str, Any]:
        probe = None if self._probe is None else asdict(self._probe)
        return {**super().state_dict(), "probe": move_data_to_device(probe, "cpu")}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._probe = ProbeSet(**state_dict["probe"])

    def _classify(self, needed: Mapping[str, Any]) -> None:
        """Names the class of each token, in the table of tokens and in TensorBoard."""
        self._tokens |= needed
        if isinstance(self.run.data, ClassifiedTask):
            self._tokens["class"] = [self.run.data.token_class] * len(self._tokens["token"])
        else:
            self._tokens["class"] = self.classes.of(self._tokens)
        self._write_tokens()
        self.flush()
        writer = self.run.writer
        if writer is not None and self.file.path is not None and self.file.path.is_file():
            with self.run.optional(f"{self.name}: the chart of the classes"):
                rows = read_batches(self.file.path)
                chart_classes(writer, self.group, rows, self._tokens["class"])

    def _write_tokens(self) -> None:
        """Writes ``probe_tokens.arrow`` anew, with what is known by now."""
        if self.file.recorder is not None and self.file.path is not None:
            path = self.file.path.with_name("probe_tokens.arrow")
            try:
                write_tokens(path, self._tokens, self.about())
            except OSError as error:
                self.run.warn(f"{path} cannot be written ({error}); training goes on without it")

    def _forward(self, batch: Batch) -> Tensor:
        """The loss of a batch's tokens, (n_blocks, length), in forwards of a bounded size."""
        n_blocks, length = batch["labels"].shape
        at_once = max(1, TOKENS_AT_ONCE // length)
        losses = []
        for start in range(0, n_blocks, at_once):
            part = {name: rows[start : start + at_once] for name, rows in batch.items()}
            losses.append(self.forward(self.run.module, part))
            if losses[-1].shape != part["labels"].shape:
                raise InputError(
                    f"ProbeLoss: labels of shape {tuple(part['labels'].shape)} got a loss per token"
                    f" of shape {tuple(losses[-1].shape)}; they must be alike"
                )
        return torch.cat(losses)

    def _needed_context(self) -> dict[str, Tensor]:
        """The loss of each token with truncated contexts, and with the full one."""
        batch = self.probe.batch
        length = batch["labels"].shape[1]
        contexts = [2**i for i in range((length - 1).bit_length())]
        with self.run.probing():
            losses = {
                f"context_{context}": truncated_loss(self._forward, batch, context)
                for context in contexts
            }
            losses["full_context"] = self._forward(batch)
        return {name: loss.flatten()[self._at].float() for name, loss in losses.items()}


def _token_loss(pl_module: Any, batch: Batch) -> Tensor:
    outputs = plain_forward(pl_module, batch)
    if not isinstance(outputs, Mapping) or "token_loss" not in outputs:
        raise InputError(
            "ProbeLoss finds no token_loss in what training_step returns; return it beside loss, "
            "or give ProbeLoss(forward=function of module and batch)"
        )
    loss: Tensor = outputs["token_loss"]
    return loss


def _sets_of(run: Run) -> Mapping[str, Any]:
    sets = run.validation()
    if not sets:
        raise InputError("ProbeLoss finds no validation set to take its blocks from; leave it out")
    return sets
