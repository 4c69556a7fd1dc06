"""What a recording is told, by whoever trains."""

from __future__ import annotations

import itertools
import math
import os
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lit_gamma.probing.forward import undisturbed
from lit_gamma.recording.budget import Budget
from lit_gamma.recording.current import CurrentWeights
from lit_gamma.recording.other_loggers import OtherLoggers
from lit_gamma.trajectory.lines import View
from lit_gamma.trajectory.tensorboard import curves, write_layout, write_values

if TYPE_CHECKING:
    from lit_gamma.recording.callback import TrajectoryCallback

T = TypeVar("T")


@dataclass(eq=False)
class Run:
    """A training that is recorded: the module, the step, and what surrounds them.

    Whoever trains makes it, starts the callbacks with it, and keeps :attr:`step` up to date.

    Attributes:
        module: The module, whose weights are W_step.
        folder: The run's directory, the same on every rank.
        callbacks: All that record this run, in their order.
        step: Optimizer steps taken.
        total_steps: Optimizer steps of the whole run; infinite if that is not known.
        trainer: Whatever trains, for callbacks that know it; None in a loop of one's own.
        data: What the batches come from, such as a LightningDataModule.
        writer: TensorBoard's writer; None without one and off rank 0.
        others: The other loggers; None without one and off rank 0.
        validation: Gives the validation sets by name; each yields batches.
        dry: Whether nothing is to be written, as in a trial run.
        precision: Opens the precision that training runs forwards in.
        hyperparameters: What the module was made with, for the record's metadata.
        resumed_from: The checkpoint that training goes on from, if it is known.
        began: Steps taken when this part of the run began.
        budget: The limit of what recording may cost; the callback that has an ``overhead`` sets it.
    """

    module: nn.Module
    folder: Path
    callbacks: Sequence[TrajectoryCallback]
    step: int = 0
    total_steps: float = math.inf
    trainer: Any = None
    data: Any = None
    writer: SummaryWriter | None = None
    others: OtherLoggers | None = None
    validation: Callable[[], Mapping[str, Iterable[Any]]] = dict
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    dry: bool = False
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: Path | None = None
    _warned: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.begin()
        for callback in self.callbacks:
            callback.run = self

    def begin(self) -> None:
        """Starts the clock, and the budget's, before anything is recorded."""
        self.began, self._clock = self.step, time.monotonic()
        limits = (getattr(callback, "overhead", None) for callback in self.callbacks)
        self.budget = Budget(next((limit for limit in limits if limit is not None), None))
        self.budget.start(self)

    @cached_property
    def weights(self) -> CurrentWeights:
        """The weight matrices, shared by all callbacks."""
        return CurrentWeights(self.module, self.per_head)

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def writes(self) -> bool:
        """Whether this process writes the record: all measure, rank 0 writes."""
        return not self.dry and self.first

    @property
    def alone(self) -> bool:
        """Whether there is one process: others may have stopped elsewhere."""
        return not dist.is_initialized() or dist.get_world_size() == 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return not dist.is_initialized() or dist.get_rank() == 0

    @property
    def seed(self) -> int | None:
        """The seed of Lightning's ``seed_everything``; None without one."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        return None if seed is None else int(seed)

    @property
    def all_tags(self) -> bool:
        """Whether TensorBoard is to get everything that the files have."""
        return any(getattr(callback, "all_tags", False) for callback in self.callbacks)

    @property
    def per_head(self) -> bool:
        """Whether queries, keys and values are recorded head by head, by all callbacks."""
        return any(getattr(callback, "per_head", False) for callback in self.callbacks)

    def shown_elsewhere(self, callback: TrajectoryCallback) -> set[str]:
        """Quantities of a callback whose tags another one has taken over."""
        others = (other for other in self.callbacks if other is not callback)
        return {q.name for other in others for q in other.quantities if q.group == callback.group}

    @property
    def views(self) -> list[View]:
        """Who draws the lines of the record."""
        of_tensorboard = [] if self.writer is None else [curves(self.writer)]
        return of_tensorboard + ([] if self.others is None else [self.others.log])

    def lay_out(self) -> None:
        """Tells the loggers what will be recorded."""
        if not self.views:
            return
        with self.optional("the layout of charts in the loggers"):
            tables = [callback.table() for callback in self.callbacks]
            if self.writer is not None:
                write_layout(self.writer, tables)
            if self.others is not None:
                self.others.choose(tables)

    @property
    def pictured(self) -> bool:
        """Whether a logger of this process takes pictures."""
        return self.writer is not None or (self.others is not None and self.others.take_pictures)

    def show(self, tag: str, image: Summary.Image) -> None:
        """Shows a picture of the present step in the loggers that take pictures."""
        if self.writer is not None:
            write_values(self.writer, [Summary.Value(tag=tag, image=image)], self.step)
        if self.others is not None and self.others.take_pictures:
            self.others.picture(tag, image.encoded_image_string, self.step)

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._clock

    @property
    def recording_seconds(self) -> float:
        """Seconds that all callbacks took so far, on the host."""
        return sum(callback.bill.seconds for callback in self.callbacks)

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Lets a forward run in training's precision, without a trace in training."""
        with undisturbed(self.module), self.precision():
            yield

    def claim(self) -> None:
        """Takes a folder that holds no other run's record, by making ``trajectory/`` in it.

        A record is continued where its callbacks left it, or where it came along with the
        checkpoint; where another run's is, this one takes the first free of ``run-2``, ``run-3``,
        ... in the folder.
        """
        asked, checkpoint = self.folder, self.resumed_from
        kept = checkpoint is not None and asked.absolute() in checkpoint.absolute().parents
        files = [callback.file for callback in self.callbacks]
        continued = self.step > 0 and any(
            file.continues(asked) or (kept and file.came_along(asked)) for file in files
        )
        if self.writes and not continued:
            numbers = itertools.count(2)
            while not _made(self.folder / "trajectory"):
                self.folder = asked / f"run-{next(numbers)}"
        self.folder = self.agree(self.folder)
        if self.folder != asked:
            self.warn(f"{asked} holds another run's record; this one goes to {self.folder}")

    @contextmanager
    def optional(self, what: str, once: str = "") -> Iterator[None]:
        """Lets what is inside fail, with a warning: it must not end training, or another's record.

        Args:
            what: What is inside, for the warning.
            once: Warnings of the same name follow no second time.
        """
        try:
            yield
        except Exception as error:
            if not once or once not in self._warned:
                self.warn(f"{what} is left out ({type(error).__name__}: {error})")
            self._warned.add(once)

    def agree(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        values = [value]
        if dist.is_initialized():
            dist.broadcast_object_list(values)
        return values[0]

    def say(self, message: str) -> None:
        """Prints a line above the progress bar, once however many processes there are."""
        if self.first:
            tqdm.write(textwrap.fill(message, 78, subsequent_indent="  "), file=sys.stderr)

    def warn(self, message: str) -> None:
        """Warns once, however many processes there are."""
        if self.first:
            warnings.warn(message, stacklevel=3)


def _made(folder: Path) -> bool:
    """Whether this process has made a folder, or nobody can: no two processes make the same."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return not folder.is_dir()  # A file in the way: the record warns when it is written.
    except OSError:
        return True
    return True
