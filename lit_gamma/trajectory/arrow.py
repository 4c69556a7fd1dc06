"""Arrow IPC streams that survive a killed process, a full disk and a deleted folder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute


class ArrowStream:
    """An Arrow IPC stream on disk, each batch written whole or not at all.

    Args:
        path: The file, made anew.
        schema: The columns.
        kept: Batches to begin with.

    Raises:
        OSError: The file cannot be made; nothing is left of it then.
    """

    def __init__(self, path: Path, schema: pa.Schema, kept: Sequence[pa.RecordBatch] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        try:
            self._file = draft.open("wb", buffering=0)
            self._end = 0
            # Without its schema a stream cannot be read: it is there before the file has its name.
            for message in (schema, *kept):
                self._write(message.serialize())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        self._path = path
        self._schema = schema

    def append(self, columns: Mapping[str, Any]) -> None:
        """Writes one batch.

        Args:
            columns: The values of every column.

        Raises:
            OSError: The disk refuses it, and the file is as it was; or the file is gone.
        """
        if not self._path.is_file() or not os.path.samestat(
            os.fstat(self._file.fileno()), self._path.stat()
        ):
            raise FileNotFoundError(2, "the file was deleted or replaced", str(self._path))
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._write(pa.record_batch(arrays, schema=self._schema).serialize())

    def close(self) -> None:
        """Ends the file."""
        self._file.close()  # A stream needs no end mark.

    def _write(self, message: pa.Buffer) -> None:
        """Writes a message whole, or, when the disk refuses, nothing of it."""
        rest = memoryview(message)
        self._file.seek(self._end)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:  # Ctrl-C too must not leave half a batch behind.
            self._file.truncate(self._end)
            raise
        self._end += len(message)


def read_batches(path: str | Path, last_step: int | None = None) -> list[pa.RecordBatch]:
    """Reads the whole batches of a table's file, and says so if the rest is damaged.

    Args:
        path: The file.
        last_step: Leave out the rows of later steps.

    Returns:
        The batches, each non-empty.
    """
    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            for batch in reader:
                batch.validate(full=True)
                batches.append(batch)
    except (pa.ArrowException, OSError) as error:
        read = f"up to step {batches[-1]['step'][-1]}" if batches else "not at all"
        reason = str(error).partition("\n")[0]
        warnings.warn(f"{path} is damaged, and is read {read} ({reason})", stacklevel=2)
    if last_step is not None:
        batches = [b.filter(pa.compute.less_equal(b["step"], last_step)) for b in batches]
    return [batch for batch in batches if batch.num_rows]
