"""The folder of a sweep: whose it is, which run lies where, and what is left to do of it."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import yaml

from lit_gamma.cli.sweep.planned import Config, PlannedRun, content
from lit_gamma.comparison.settings import differing, flat
from lit_gamma.comparison.sweep_table import has_ended, row, summary_of, write_table
from lit_gamma.errors import InputError
from lit_gamma.files import parsed, replacing, resume_point


class SweepFolder:
    """Where a sweep's runs, their logs and the table lie.

    A run is known by the content of the ``config.yaml`` in its folder, whatever that is called.

    Args:
        path: The folder; made when the sweep begins.
        runs: The sweep's runs.

    Attributes:
        failures: Why a run failed, by its name: what its summary cannot say.
    """

    def __init__(self, path: Path, runs: Sequence[PlannedRun]) -> None:
        self.path = path
        self.runs = runs
        self.failures: dict[str, str] = {}
        self._contents: dict[tuple[Path, int], str] = {}

    def refuse_another(self, base: Config, read: Callable[[Path], Config]) -> None:
        """Refuses a folder in which another config was swept.

        What an earlier lit-gamma left is known by the options that it had, the rest as by default.

        Args:
            base: The config without the grid.
            read: Reads a saved config with the options of today.

        Raises:
            InputError: The folder holds something else, or a sweep of another config.
        """
        kept = self.path / "sweep.yaml"
        if not self.path.exists():
            return
        if not kept.is_file():
            if self.path.is_file() or any(self.path.iterdir()):
                raise InputError(
                    f"{self.path} holds no sweep, but something else: give another --out"
                )
            return
        with parsed(f"{kept} is damaged; give another --out"):
            before = yaml.load(kept.read_text(), yaml.CSafeLoader)
            swept = content(before)
        if swept != content(base):
            with suppress(InputError):  # Of an option that is no more: it differs then.
                before = read(kept)
                swept = content(before)
        if swept != content(base):
            apart = differing([flat(before), flat(base)])
            said = [f"{key} {old}, not {new}" for key, (old, new) in apart.items()]
            raise InputError(
                f"{self.path} is the sweep of another config, with {', '.join(said[:3])}: put that "
                "into the grid, or give another --out"
            )
        self._read_earlier(read)

    def _read_earlier(self, read: Callable[[Path], Config]) -> None:
        """Reads the configs of runs that are none of the planned as they stand."""
        planned = {run.content for run in self.runs}
        for path in self.path.rglob("config.yaml"):
            if self._content(path) and self._content(path) not in planned:
                with suppress(InputError):
                    self._contents[path, path.stat().st_mtime_ns] = content(read(path))

    @contextmanager
    def held(self, base: Config) -> Iterator[None]:
        """Makes the folder, notes in it which config is swept, and keeps other sweeps out.

        Args:
            base: The config without the grid.

        Raises:
            InputError: Another sweep goes on there.
        """
        (self.path / "locks").mkdir(parents=True, exist_ok=True)
        lock = self._locked("sweep")
        if lock is None:
            raise InputError(f"another sweep goes on in {self.path}; wait for it, or end it")
        with lock:
            with replacing(self.path / "sweep.yaml") as draft:
                draft.write_text(yaml.safe_dump(base, sort_keys=False))
            yield

    def taken(self, run: PlannedRun, wait: bool = False) -> IO[bytes] | None:
        """Takes a run, so that no other process begins it.

        Args:
            run: The run.
            wait: Until it is free.

        Returns:
            A file. The run is taken as long as that is open here, or in a process that inherits it;
            None if another process has it.
        """
        return self._locked(sha256(run.content.encode()).hexdigest()[:16], wait)

    def _locked(self, name: str, wait: bool = False) -> IO[bytes] | None:
        lock = (self.path / "locks" / name).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.close()
            return None
        return lock

    def where(self, run: PlannedRun) -> Path | None:
        """The folder of a run that has begun; None before."""
        return self._found().get(run.content)

    def left(self) -> list[PlannedRun]:
        """The runs that have something left to do."""
        found = self._found()
        return [run for run in self.runs if not _has_ended(run, found.get(run.content))]

    def has_ended(self, run: PlannedRun) -> bool:
        """Whether a run has nothing left to do."""
        return _has_ended(run, self.where(run))

    def arguments(self, run: PlannedRun) -> list[str]:
        """Those of the fit that goes on with a run, from its last checkpoint or anew.

        What began and left no checkpoint is removed, as the run takes its place.
        """
        at = self.where(run)
        if at is not None and resume_point(last := at / "checkpoints" / "last.ckpt").exists():
            return [*run.arguments, f"--ckpt_path={last}"]
        unnamed = self.path / run.name
        for left in (at, unnamed if not self._content(unnamed / "config.yaml") else None):
            if left is not None and left.is_dir():
                shutil.rmtree(left)
        return list(run.arguments)

    def log(self, run: PlannedRun) -> Path:
        """Where a run's process writes what it has to say."""
        return self.path / "logs" / f"{run.name}.txt"

    def write_table(self) -> None:
        """Writes what the runs have come to."""
        write_table(self.path, self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """What the runs have come to, see :func:`lit_gamma.comparison.sweep_table.row`."""
        found = self._found()
        return [self._row(run, found.get(run.content)) for run in self.runs]

    def _row(self, run: PlannedRun, at: Path | None) -> dict[str, Any]:
        failure = self.failures.get(run.name)
        summary = None if at is None else summary_of(at)
        ended = _has_ended(run, at)
        if failure and not ended:
            summary = {"status": failure}
        name = run.name if at is None else str(at.relative_to(self.path))
        return row(name, run.setting, run.seed, summary, ended)

    def _found(self) -> dict[str, Path]:
        """The folder of each content; of several, the one that has come furthest."""
        paths = sorted(self.path.rglob("config.yaml"), key=lambda path: _progress(path.parent))
        return {what: path.parent for path in paths if (what := self._content(path))}

    def _content(self, path: Path) -> str:
        """The content of a run's config; empty if it is none, or was cut short."""
        if not path.is_file():
            return ""
        key = (path, path.stat().st_mtime_ns)
        if key not in self._contents:
            try:
                self._contents[key] = content(yaml.load(path.read_text(), yaml.CSafeLoader))
            except (yaml.YAMLError, KeyError, TypeError, AttributeError):
                self._contents[key] = ""
        return self._contents[key]


def _has_ended(run: PlannedRun, at: Path | None) -> bool:
    return at is not None and has_ended(summary_of(at), run.max_steps)


def _progress(at: Path) -> tuple[int, bool]:
    """How far a run has come: its steps, if it has stopped, and whether it has a checkpoint."""
    return summary_of(at).get("steps", 0), (at / "checkpoints" / "last.ckpt").exists()
