"""The record of a series of checkpoints: the same core, told the steps by files."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lit_gamma.callbacks import Condensation, EffectiveRank, Overview, Schedule
from lit_gamma.comparison.report import write_report
from lit_gamma.errors import InputError
from lit_gamma.probing.blocks import Batch
from lit_gamma.recording.callback import TrajectoryCallback
from lit_gamma.recording.run import Run
from lit_gamma.recording.summary import summarize, write_summary
from lit_gamma.recording.weights import WeightTrajectory
from lit_gamma.series.members import Member, members
from lit_gamma.series.models import open_model
from lit_gamma.series.norms import WeightNorms
from lit_gamma.series.probes import ProbeText
from lit_gamma.series.settled import SettledFile
from lit_gamma.series.state import State
from lit_gamma.series.stored import Stored, open_stored
from lit_gamma.series.weights import StoredWeights
from lit_gamma.trajectory.tensorboard import keep_writing
from lit_gamma.weights.parameters import Roles


def measure(
    series: str | Sequence[str],
    out: str | Path,
    callbacks: Sequence[TrajectoryCallback] | None = None,
    roles: Roles | None = None,
    text: str | Path | None = None,
) -> dict[str, Any]:
    """Records a series of checkpoints as if their training had been recorded at these steps.

    ::

        measure("EleutherAI/pythia-160m@step0,step1000,step2000", "runs/pythia")

    Weights alone are needed, no class: roles come from names. They are read one matrix at a time.
    Called again with the same folder it goes on where it was, also when the series has grown. A
    checkpoint that is damaged is left out, with a warning, and is a hole of the record.

    Args:
        series: Checkpoints, folders of some, globs, or revisions of the hub, see
            :func:`lit_gamma.series.members.members`.
        out: Where the record goes.
        callbacks: Callbacks of weights, see ``WeightTrajectory``; by default ``Condensation``,
            ``EffectiveRank`` and :class:`~lit_gamma.series.norms.WeightNorms` of all matrices at
            every checkpoint, and ``Overview``.
        roles: Roles that names do not tell, see :func:`lit_gamma.neurons`.
        text: A file that each checkpoint's model is run on, one in memory at a time: ``ProbeLoss``,
            ``HiddenStates`` and ``AttentionSink`` are recorded besides. The checkpoints must be
            those of :class:`~lit_gamma.LanguageModel`, or folders that ``transformers`` can load,
            and have their tokenizer.

    Returns:
        What ``summary.json`` holds.

    Raises:
        InputError: There is no series, none of it can be read, its shapes differ, ``out`` holds
            another record, a callback needs more than weights, or the text cannot be read.
    """
    for callback in callbacks or ():
        if not isinstance(callback, (WeightTrajectory, WeightNorms, Overview)):
            raise InputError(
                f"{type(callback).__name__} needs a module, and a series has weights alone, read "
                "one by one: give a WeightTrajectory, or lit_gamma.series.WeightNorms"
            )
    found = members([series] if isinstance(series, str) else series)
    probe = None if text is None else ProbeText(Path(text))
    measuring = _Measuring(found, Path(out), callbacks or default_callbacks(), roles, probe)
    with measuring.bar:
        for member in measuring.ahead:
            measuring.go_on_to(member)
    return measuring.finish()


def default_callbacks() -> list[TrajectoryCallback]:
    """What is recorded of a series by default: every matrix of every checkpoint, and a picture."""
    every = Schedule(every=1)
    return [Condensation(every), EffectiveRank(every), WeightNorms(every), Overview()]


class _Measuring:
    """A series that is being measured.

    Args:
        found: Its checkpoints, by their steps.
        folder: Where the record goes.
        callbacks: What is recorded.
        roles: Roles that names do not tell.
        text: What models are run on, if anything.

    Attributes:
        ahead: The checkpoints that are still to be measured.
        bar: Shows how many of them are.
    """

    def __init__(
        self,
        found: Sequence[Member],
        folder: Path,
        callbacks: Sequence[TrajectoryCallback],
        roles: Roles | None,
        text: ProbeText | None,
    ) -> None:
        self._found, self._folder, self._roles, self._text = found, folder, roles, text
        self._callbacks = [*callbacks, *(text.callbacks() if text else [])]
        digest = text.digest if text else ""
        self._state = State.read(folder)
        if self._state.steps and self._state.text != digest:
            raise InputError(
                f"--out {folder} was measured {'on another' if self._state.text else 'without a'} "
                "--text; name another folder"
            )
        self._state.text = digest
        self.ahead = [member for member in found if member.step > self._state.last]
        self._warn_of_late_ones()
        self.bar = tqdm(
            total=len(self.ahead),
            desc="measure",
            unit="checkpoint",
            disable=None,
            bar_format="{desc} |{bar}| {n:.1f}/{total} [{elapsed}<{remaining}{postfix}]",
        )
        self._done, self._clock = 0, time.monotonic()
        self._run: Run | None = None

    def go_on_to(self, member: Member) -> None:
        """Measures a checkpoint, or skips it if it cannot be read."""
        path = member.fetch()
        if self._run is not None:
            self._run.module = self._weights.module  # One model in memory at a time.
        try:
            stored = open_stored(path)
            model = open_model(path) if self._text else None
        except InputError as error:
            self._skip(member, error)
            return
        begins, first = self._run is None, None
        if begins and self._text and model:  # Before anything is written.
            first = self._text.cut_for(model)
        run = self._begin(stored, member.step) if self._run is None else self._run
        self._weights.show(stored)
        run.step = member.step
        self.bar.set_postfix(step=member.step)
        if model is not None:
            run.module = model.module
        if begins:
            self._start(run, first)
        else:
            for callback in self._callbacks:
                callback.measure_if_due()
        self._weights.earlier = stored
        self._keep(run)

    def _start(self, run: Run, first: Batch | None) -> None:
        """Starts the callbacks, and leaves out those that see nothing in the model's forward."""
        if self._text is not None:
            self._text.show(run)
        for callback in self._callbacks:
            callback.start(run)
            if callback.needs_batches:
                try:
                    callback.before(first)
                except InputError as error:
                    warnings.warn(str(error), stacklevel=2)
                    self._callbacks = [c for c in self._callbacks if c is not callback]
        run.callbacks = self._callbacks

    def finish(self) -> dict[str, Any]:
        """Ends the record, and writes its summary and its page."""
        state, run = self._state, self._run
        if not state.steps:
            raise InputError(next(iter(state.skipped.values())))
        if run is None:
            run = self._begin(self._any(), state.last)
        else:
            last = self._weights.earlier
            if self._text and last is not None and run.module is self._weights.module:
                run.module = open_model(last.path).module  # It made room for one that is broken.
            for callback in self._callbacks:
                callback.measure_if_due(last=True)  # A picture of the last one.
            for callback in self._callbacks:
                callback.finish()
        for callback in self._callbacks:
            callback.file.holes += [(s, s) for s in sorted(state.skipped) if callback.due(s)]
        state.write(self._folder)
        run.module = self._weights.finite  # All that the summary asks of it.
        summary = summarize(run, "finished", state.seconds, {}, {})
        summary["series"] = {"checkpoints": len(state.steps), "skipped": state.skipped}
        write_summary(run, summary)
        page = run.folder / "report.html"
        with run.optional(str(page)):
            write_report([run.folder], page)
        if run.writer is not None:
            run.writer.close()
        return summary

    def _begin(self, first: Stored, step: int) -> Run:
        """The run, from its first checkpoint on that can be read, or from where it was."""
        per_head = any(getattr(callback, "per_head", False) for callback in self._callbacks)
        weights = StoredWeights(first, self._roles, self._count, per_head)
        matrices = [[m.name, *m.weight.shape] for m in weights.matrices]
        if self._state.matrices not in ([], matrices):
            raise InputError(
                f"--out {self._folder} holds the record of another series than that of "
                f"{first.path}: its matrices differ; name another folder"
            )
        self._state.matrices = matrices
        run = Run(
            module=weights.module,
            folder=self._folder,
            callbacks=self._callbacks,
            step=step,
            total_steps=self._found[-1].step,
            hyperparameters=first.about,
        )
        run.weights = weights
        if self.ahead:
            run.writer = keep_writing(SummaryWriter(self._folder))
        for callback in self._callbacks:
            callback.file = SettledFile(self._state.files.get(callback.name))
        weights.earlier = self._measured_last()
        self._weights, self._run = weights, run
        return run

    def _any(self) -> Stored:
        """A checkpoint that was measured, for its names and shapes."""
        for member in self._found:
            if member.step in self._state.steps:
                return open_stored(member.fetch())
        raise InputError(
            f"--out {self._folder} holds the record of another series: it is measured up to step "
            f"{self._state.last}, and none of its checkpoints is given; name another folder"
        )

    def _measured_last(self) -> Stored | None:
        """The checkpoint measured last, if it is there."""
        for member in self._found:
            if member.step == self._state.last:
                try:
                    return open_stored(member.fetch())
                except InputError as error:
                    warnings.warn(
                        f"{error}; the update ratio of the next is not known", stacklevel=2
                    )
        return None

    def _keep(self, run: Run) -> None:
        """Writes the rows of a checkpoint, then that it is measured."""
        state = self._state
        for callback in self._callbacks:
            callback.write()
            state.files[callback.name] = callback.file.state_dict()
        state.steps.append(run.step)
        state.skipped.pop(run.step, None)
        before, self._clock = self._clock, time.monotonic()
        state.seconds += self._clock - before
        state.write(self._folder)
        self._advance_bar()

    def _skip(self, member: Member, why: InputError) -> None:
        self._state.skipped[member.step] = str(why)
        warnings.warn(f"step {member.step} is left out: {why}", stacklevel=2)
        self._advance_bar()

    def _warn_of_late_ones(self) -> None:
        """Says which checkpoints have come too late: a record goes forward."""
        state = self._state
        known = {*state.steps, *state.skipped}
        if late := [m.step for m in self._found if m.step < state.last and m.step not in known]:
            warnings.warn(
                f"{self._folder} is measured up to step {state.last}; step {late[0]}"
                f"{f' and {len(late) - 1} more' if late[1:] else ''} before it is left out. Name "
                "another --out to measure all",
                stacklevel=3,
            )

    def _count(self) -> None:
        """A matrix was measured by a callback."""
        of = len(self._state.matrices) * len(self._callbacks)
        self.bar.update(min(1 / of, max(0.0, self._done + 1 - self.bar.n)))

    def _advance_bar(self) -> None:
        self._done += 1
        self.bar.update(self._done - self.bar.n)
