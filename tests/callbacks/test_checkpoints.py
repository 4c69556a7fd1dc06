"""A checkpoint is whole, finite and what was saved, or it is not there."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import shutil
from pathlib import Path

import lightning
import pytest
import torch
from helpers import runs
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.tensorboard import SummaryWriter

from lit_gamma import InputError
from lit_gamma.callbacks import Checkpoints, KeepCheckpoints, RunSummary, Schedule
from lit_gamma.callbacks.checkpoints import WholeCheckpointIO
from lit_gamma.files import (
    check_checkpoint,
    drop_old,
    is_whole,
    resume_point,
    save_checkpoint,
    set_aside,
)
from lit_gamma.trajectory.tensorboard import keep_writing, write_values


@contextlib.contextmanager
def files_end_at(n_bytes: int):
    """Refuses, as a full disk does, what would make any file longer."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fit(root: Path, *callbacks, **trainer) -> lightning.Trainer:
    return runs.fit(root, *callbacks, enable_checkpointing=True, **trainer)


class During(lightning.Callback):
    """Enters a context at the start of a step, and leaves it at the start of a later one."""

    def __init__(self, start: int, stop: int, context) -> None:
        self.start, self.stop, self.context = start, stop, context

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.start:
            self.context.__enter__()
        if trainer.global_step == self.stop:
            self.context.__exit__(None, None, None)


def checkpoints(folder: Path, **options) -> Checkpoints:
    options = {"save_last": True, "every_n_train_steps": 2, **options}
    return Checkpoints(folder, "{step}", **options)


def steps_in(folder: Path) -> dict[str, int]:
    found = {path.name: torch.load(path, weights_only=True) for path in folder.iterdir()}
    return {name: checkpoint["global_step"] for name, checkpoint in sorted(found.items())}


def test_a_full_disk_costs_a_checkpoint_and_not_the_one_before_it(tmp_path):
    folder = tmp_path / "kept"
    full = During(5, 9, files_end_at(2000))
    try:
        with pytest.warns(UserWarning, match=r"no checkpoint of step [68] .*File too large"):
            fit(tmp_path, full, RunSummary(), checkpoints(folder), max_steps=8)
    finally:
        full.context.__exit__(None, None, None)
    assert steps_in(folder) == {"last.ckpt": 4, "step=4.ckpt": 4}
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match="no checkpoint of step 6"):
        fit(tmp_path, During(5, 7, files_end_at(2000)), checkpoints(folder), max_steps=8)
    # What was kept over the refused one goes when the next is there.
    assert steps_in(folder) == {"last.ckpt": 8, "step=8.ckpt": 8}


@pytest.mark.parametrize("options", [{}, {"monitor": "train/loss", "save_top_k": 2}])
def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path, options):
    class Diverges(lightning.Callback):
        def on_train_batch_start(self, trainer, module, *_):
            if trainer.global_step == 6:
                next(module.parameters()).data[0] = torch.inf

    folder = tmp_path / "kept"
    kept = checkpoints(folder, **options)
    with pytest.warns(UserWarning, match="no checkpoint of step 8 .the weights are not finite"):
        trainer = fit(tmp_path, Diverges(), kept, max_steps=11)
    assert set(steps_in(folder).values()) <= {2, 4, 6}
    assert steps_in(folder)["last.ckpt"] == kept.saved_step == 6
    resumed = fit(tmp_path, checkpoints(folder), max_steps=8, ckpt_path=folder / "last.ckpt")
    assert trainer.global_step == 11
    assert all(p.isfinite().all() for p in resumed.lightning_module.parameters())


def test_the_last_step_is_saved_whatever_the_interval(tmp_path):
    fit(tmp_path, checkpoints(tmp_path / "kept", every_n_train_steps=3), max_steps=7)
    assert steps_in(tmp_path / "kept") == {"last.ckpt": 7, "step=6.ckpt": 6}


def test_a_checkpoint_goes_on_as_lightnings_own(tmp_path):
    own = ModelCheckpoint(tmp_path / "own", "{step}", every_n_train_steps=3)
    fit(tmp_path, own, max_steps=3)
    ours = checkpoints(tmp_path / "ours", every_n_train_steps=3, save_last=False)
    fit(tmp_path, ours, max_steps=3)
    a, b = (
        torch.load(tmp_path / name / "step=3.ckpt", weights_only=True) for name in ("own", "ours")
    )
    assert a.keys() == b.keys()
    for name, weight in a["state_dict"].items():
        assert torch.equal(weight, b["state_dict"][name])


class Killed(BaseException):
    """Stands in for ``kill -9``: nothing is done after it."""


def written_until(n: int, path: Path, step: int) -> None:
    """Writes a sharded checkpoint, and is killed before the n-th change of a file or folder."""
    left = iter([False] * n)

    def unless_killed(change):
        def changed(*args, **kwargs):
            if next(left, True):
                raise Killed
            return change(*args, **kwargs)

        return changed

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, unless_killed(getattr(os, name)))
        set_aside(path)
        path.mkdir(exist_ok=True)
        for name in ("__0_0.distcp", ".metadata", "meta.pt"):
            unless_killed((path / name).write_bytes)(b"PK")
        unless_killed(torch.save)({"global_step": step}, path / "meta.pt")
        drop_old(path)


def test_a_sharded_checkpoint_whose_writer_is_killed_leaves_the_one_before_it(tmp_path):
    path, step = tmp_path / "last.ckpt", 1
    written_until(100, path, step)
    for n in itertools.count():
        try:
            written_until(n, path, step + 1)
        except Killed:
            left = resume_point(path)
            assert is_whole(left)
            found = torch.load(left / "meta.pt", weights_only=True)["global_step"]
            assert found in (step, step + 1)
            step = found
        else:
            break
    assert n > 10
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert torch.load(path / "meta.pt", weights_only=True)["global_step"] == step + 1


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "a.ckpt"
    saved = {"weights": torch.randn(40), "step": 7, "name": "gamma"}
    save_checkpoint(saved, path)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        try:
            read = WholeCheckpointIO().load_checkpoint(path)
        except InputError as error:
            refused += "a.ckpt is no checkpoint that can be read" in str(error)
        else:
            assert torch.equal(read.pop("weights"), saved["weights"])
            assert read == {"step": 7, "name": "gamma"}
    assert refused > 100


@pytest.mark.parametrize("share", [0, 0.3, 0.9, 0.999])
def test_a_cut_checkpoint_is_refused_and_the_newest_whole_one_named(tmp_path, share):
    for name in ("old", "new", "last"):
        save_checkpoint({"weights": torch.randn(50)}, tmp_path / f"{name}.ckpt")
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"last\.ckpt is no .*whole one beside it is .*new\.ckpt"):
        check_checkpoint(tmp_path / "last.ckpt")


def test_tensorboard_goes_on_when_there_is_room_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.proto.summary_pb2 import Summary

    def write(steps: range) -> None:
        for step in steps:
            write_values(writer, [Summary.Value(tag="loss", simple_value=step)], step)
            writer.flush()

    writer = keep_writing(SummaryWriter(tmp_path))
    write(range(20))
    with files_end_at(1200), pytest.warns(UserWarning, match="cannot be written .File too") as said:
        write(range(20, 40))
    write(range(40, 60))
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    steps = [event.step for event in events]
    assert steps[:20] == list(range(20))
    assert steps[-20:] == list(range(40, 60))
    assert len(steps) < 60
    assert len(said) == 1


def test_checkpoints_of_a_schedule_are_kept_with_the_weights_of_their_steps(tmp_path):
    class Weights(lightning.Callback):
        def __init__(self):
            self.seen = {}

        def on_train_batch_end(self, trainer, module, *_):
            self.seen[trainer.global_step] = {k: v.clone() for k, v in module.state_dict().items()}

    keep = KeepCheckpoints(Schedule(per_decade=2, every=7))
    weights = Weights()
    trainer = fit(tmp_path, weights, checkpoints(tmp_path / "all"), keep, max_steps=16)
    assert trainer.checkpoint_callback is not keep
    folder = Path(trainer.log_dir, "checkpoints")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        f"step={step}.ckpt" for step in (0, 1, 3, 7, 10, 14)
    )
    for step in (1, 3, 7, 10, 14):
        kept = torch.load(folder / f"step={step}.ckpt", weights_only=True)
        assert kept["global_step"] == step
        assert "optimizer_states" not in kept
        for name, weight in weights.seen[step].items():
            assert torch.equal(kept["state_dict"][name], weight)

    last = tmp_path / "all" / "last.ckpt"
    again = KeepCheckpoints(Schedule(per_decade=2, every=7))
    resumed = fit(tmp_path, checkpoints(tmp_path / "all"), again, max_steps=22, ckpt_path=last)
    assert [p.name for p in Path(resumed.log_dir, "checkpoints").iterdir()] == ["step=21.ckpt"]


def test_a_run_that_goes_on_elsewhere_replaces_no_other_run_s_checkpoint(tmp_path):
    for name, steps in (("one", 4), ("other", 6)):
        fit(tmp_path, checkpoints(tmp_path / name), max_steps=steps)
    last = tmp_path / "one" / "last.ckpt"
    fit(tmp_path, checkpoints(tmp_path / "other"), max_steps=8, ckpt_path=last)
    steps = steps_in(tmp_path / "other")
    assert (steps["last.ckpt"], steps["last-v1.ckpt"]) == (6, 8)
