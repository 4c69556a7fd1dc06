"""Files that are whole, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from lit_gamma.errors import InputError

_FOREIGN = (
    ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError, SafetensorError,
    yaml.YAMLError,
)  # fmt: skip


class AppendFile:
    """A file to which each piece is added whole or not at all.

    Args:
        path: The file; what it holds already stays.

    Raises:
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._end = self._file.tell()

    def append(self, piece: bytes | bytearray) -> None:
        """Writes a piece at the end.

        Raises:
            OSError: The disk refuses it; nothing of it is left.
        """
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:  # Ctrl-C too must not leave half a piece behind.
            self._file.truncate(self._end)
            raise
        self._end += len(piece)

    def fileno(self) -> int:
        """The system's number of the open file."""
        return self._file.fileno()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def parts(path: Path) -> Iterator[bytes]:
    """Reads a file in parts of 1 MiB."""
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            yield part


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    for part in parts(path):
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lets a file be written beside its place, and moves it there when it is whole and on disk.

    Args:
        path: Its place; what is there stays until then.

    Yields:
        Where to write.
    """
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.unlink(missing_ok=True)
        yield draft
        _to_disk(draft)
        os.replace(draft, path)
        if os.name == "posix":
            _to_disk(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Lets a folder be filled beside its place, and moves it there when it is whole.

    Args:
        folder: Its place, where nothing is yet.

    Yields:
        The folder to fill.

    Raises:
        InputError: It exists.
    """
    if folder.exists():
        raise InputError(f"{folder} exists; name a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir()
        yield draft
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def save_checkpoint(checkpoint: Any, path: Path) -> None:
    """Saves what ``torch.save`` takes, whole or not at all.

    Raises:
        OSError: The disk refuses it; an earlier file of the name is as it was.
    """
    import torch  # Here, as it takes seconds, and records are written and read without.

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        try:
            with draft.open("wb", buffering=0) as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides it behind one of its own.
                raise error.__context__ from None
            raise


def check_checkpoint(path: Path) -> None:
    """Refuses a file that ``torch.save`` did not write, or that was damaged since.

    ``torch.save`` writes a ZIP archive with a CRC-32 of every tensor, which ``torch.load`` does not
    look at.

    Raises:
        InputError: The file is empty, cut short, changed or another file; the message names the
            newest whole checkpoint beside it.
    """
    if fault := _fault(path):
        others = sorted(path.parent.glob("*.ckpt"), key=lambda p: p.stat().st_mtime, reverse=True)
        whole = next((other for other in others if not _fault(other)), None)
        advice = f"; the newest whole one beside it is {whole}" if whole else ""
        raise InputError(f"{path} is no checkpoint that can be read: {fault}{advice}")


def is_whole(folder: Path) -> bool:
    """Whether a folder is a sharded checkpoint, written to its end: ``meta.pt`` comes last."""
    return (folder / ".metadata").is_file() and not _fault(folder / "meta.pt")


def set_aside(path: Path) -> None:
    """Makes room for a sharded checkpoint; the one that is there waits beside it, as ``.old``.

    Raises:
        OSError: The disk refuses it; what there was to go on from is still there.
    """
    old = _old(path)
    if is_whole(path):
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    elif path.is_dir() and is_whole(old):
        shutil.rmtree(path)


def drop_old(path: Path) -> None:
    """Removes what was set aside, once the checkpoint that takes its place is whole."""
    old = _old(path)
    if old.is_dir() and is_whole(path):
        _to_disk(path / "meta.pt")
        shutil.rmtree(old, ignore_errors=True)


def resume_point(path: Path) -> Path:
    """A checkpoint's place, or that of the one set aside if the writer was killed.

    Args:
        path: Where the checkpoint should be.

    Returns:
        ``<path>.old`` if that is a whole sharded checkpoint and ``path`` is none, else ``path``.
    """
    old = _old(path)
    return old if not path.is_file() and not is_whole(path) and is_whole(old) else path


def _old(path: Path) -> Path:
    return path.parent / f"{path.name}.old"  # with_name refuses "." and "/".


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Says in one line what ``torch.load`` raises over a file inside.

    Raises:
        InputError: torch cannot read the file.
    """
    try:
        yield
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is no checkpoint that can be read: {reason}") from error


@contextmanager
def parsed(what: str) -> Iterator[None]:
    """Says in one line what the content of a foreign or damaged file leads to.

    Args:
        what: Of which file, and what it is not.

    Raises:
        InputError: It cannot be made sense of.
    """
    try:
        yield
    except InputError:
        raise
    except _FOREIGN as error:
        if isinstance(error, OSError) and error.errno:  # The system's: no permission, no space.
            raise
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{what}: {type(error).__name__}: {reason}") from error


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's file."""
    try:
        if not zipfile.is_zipfile(path):
            return "it is empty, cut short or another file"
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, ValueError) as error:
        return f"it is damaged ({error})"
    return f"it is damaged (the checksum of {damaged} is wrong)" if damaged else None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
