"""Arrow IPC streams that survive a killed process, a full disk, a deleted folder and flipped bits.

Every batch carries, in its message's metadata, the CRC-32 of the schema's message and of its own,
computed with zeros in the sum's place, as in a header of IP.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lit_gamma.files import AppendFile, replacing

_SUM = b"crc32:"


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
        with replacing(path) as draft:
            self._file = AppendFile(draft)
            # Without its schema a stream cannot be read: it is there before the file has its name.
            self._file.append(schema.serialize().to_pybytes())
            for batch in kept:
                self._file.append(_with_sum(batch))
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
        self._file.append(_with_sum(pa.record_batch(arrays, schema=self._schema)))

    def close(self) -> None:
        """Ends the file."""
        self._file.close()  # A stream needs no end mark.


Keep = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Says which rows to keep, from their steps; called for each batch in turn."""


def up_to(last_step: int) -> Keep:
    """Keeps the rows up to a step."""
    return lambda steps: steps <= last_step


def log_spaced(per_decade: int) -> Keep:
    """Keeps at most that many recorded steps per factor of ten of 1 + step, each whole."""
    first: dict[int, int] = {}

    def keep(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        bins = np.floor(per_decade * np.log10(1.0 + steps)).astype(int).tolist()
        return np.array([first.setdefault(b, s) == s for b, s in zip(bins, steps, strict=True)])

    return keep


def read_batches(path: str | Path, keep: Keep | None = None) -> list[pa.RecordBatch]:
    """Reads the whole batches of a table's file, and says so if others are damaged.

    Args:
        path: The file.
        keep: The rows to keep; all by default.

    Returns:
        The batches, each non-empty.
    """
    batches: list[pa.RecordBatch] = []
    gaps: list[str] = []
    last: int | None = None
    try:
        for batch in _batches(path):
            if batch is None:
                gaps.append(f"without a batch {_after(last)} (its checksum is wrong)")
            elif batch.num_rows:
                last = batch["step"][-1].as_py() if "step" in batch.schema.names else None
                batches.append(batch if keep is None else _kept(batch, keep))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        gaps.append(f"without what comes {_after(last)} ({reason})")
    if gaps:
        warnings.warn(f"{path} is damaged, and is read {', '.join(gaps)}", stacklevel=2)
    return [batch for batch in batches if batch.num_rows]


def schema_of(path: str | Path) -> pa.Schema:
    """The columns of a table's file; none if it cannot be opened: reading its rows says why."""
    try:
        with pa.OSFile(str(path)) as source, pa.ipc.open_stream(source) as reader:
            return reader.schema
    except (pa.ArrowException, OSError):
        return pa.schema([])


def _batches(path: str | Path) -> Iterator[pa.RecordBatch | None]:
    """Yields a file's batches; None for one that is not what was written."""
    with (
        open(path, "rb") as raw,
        pa.OSFile(str(path)) as source,
        pa.ipc.open_stream(source) as reader,
    ):
        of_schema = zlib.crc32(raw.read(source.tell()))
        for batch, metadata in reader.iter_batches_with_custom_metadata():
            message = bytearray(raw.read(source.tell() - raw.tell()))
            if metadata is not None and not _sum_up(message, of_schema):
                yield None
            else:
                batch.validate(full=True)
                yield batch


def _with_sum(batch: pa.RecordBatch) -> bytearray:
    """The message of a batch, with its checksum."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch, custom_metadata={"checksum": _SUM + b"0" * 8})
        end = sink.tell()
    schema = batch.schema.serialize()
    message = bytearray(memoryview(sink.getvalue())[len(schema) : end])
    _sum_up(message, zlib.crc32(schema))
    return message


def _sum_up(message: bytearray, of_schema: int) -> bool:
    """Puts a message's checksum in; returns whether it was there."""
    start = message.find(_SUM) + len(_SUM)
    there = message[start : start + 8]
    message[start : start + 8] = b"0" * 8
    value = b"%08x" % zlib.crc32(message, of_schema)
    message[start : start + 8] = value
    return there == value


def _kept(batch: pa.RecordBatch, keep: Keep) -> pa.RecordBatch:
    return batch.filter(pa.array(keep(batch["step"].to_numpy())))


def _after(step: int | None) -> str:
    return "first" if step is None else f"after step {step}"
