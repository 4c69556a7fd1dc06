"""Arrow IPC streams that survive a killed process and a full disk."""

from __future__ import annotations

import io
import os
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
        OSError: If the file cannot be made.
    """

    def __init__(self, path: Path, schema: pa.Schema, kept: Sequence[pa.RecordBatch] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".tmp")
        self._file = draft.open("wb", buffering=0)
        self._staged = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._staged, schema)
        self._schema = schema
        for batch in kept:
            self._writer.write_batch(batch)
        self._write_through()
        os.replace(draft, path)

    def append(self, columns: Mapping[str, Any]) -> None:
        """Writes one batch; an OSError leaves the file as it was."""
        arrays = [pa.array(columns[field.name], field.type) for field in self._schema]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._write_through()

    def close(self) -> None:
        """Ends the file."""
        self._file.close()  # A stream needs no end mark.

    def _write_through(self) -> None:
        """Writes what is staged whole, or, when the disk refuses, nothing of it."""
        staged, start = memoryview(self._staged.getvalue()), self._file.tell()
        self._staged.seek(0)
        self._staged.truncate()
        try:
            while staged:
                staged = staged[self._file.write(staged) :]
        except BaseException:  # Ctrl-C too must not leave half a batch behind.
            self._file.truncate(start)
            self._file.seek(start)
            raise


def read_batches(path: str | Path, last_step: int | None = None) -> list[pa.RecordBatch]:
    """Reads the complete batches of a table's file, whether or not the stream was ended.

    Args:
        path: The file.
        last_step: Leave out the rows of later steps.

    Returns:
        The batches, each non-empty.
    """
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
        while True:
            try:
                batch = reader.read_next_batch()
            except (StopIteration, pa.ArrowInvalid):
                return batches
            if last_step is not None:
                batch = batch.filter(pa.compute.less_equal(batch["step"], last_step))
            if batch.num_rows:
                batches.append(batch)
