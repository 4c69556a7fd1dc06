"""Where text comes from: local files and hub datasets, read document by document."""

from __future__ import annotations

import errno
import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_gamma.data.hub import check_reachable
from lit_gamma.errors import InputError

if TYPE_CHECKING:
    import datasets

Piece = tuple[str, bool]
"""Text, and whether its document ends with it."""

_BUILDERS = {
    ".jsonl": "text",  # A JSON reader of columns would guess types: dates, say.
    ".ndjson": "text",
    ".json": "json",
    ".parquet": "parquet",
}
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("zip", "unzip"),
}
"""How a compressed file begins: its kind, and what undoes it."""
_PIECE = 1 << 20  # Characters of a text file that are read at once.


class LocalDocuments:
    """The documents of local files.

    A plain text file is one document, byte for byte; of a JSONL or Parquet file, every row's
    ``field`` is one.

    Args:
        patterns: Paths or glob patterns.
        field: Column that holds the text, in JSONL and Parquet files.
        option: What the patterns were given as, for messages.

    Raises:
        InputError: No file matches. While reading: a file is empty, cannot be decoded or lacks the
            field.
    """

    def __init__(self, patterns: str | list[str], field: str, option: str) -> None:
        with given_as(option):
            self.files = _expand([patterns] if isinstance(patterns, str) else patterns)
        self.field = field
        self.option = option

    def identity(self) -> list[Any]:
        """What the documents depend on: each file's path, size and time of change; the field."""
        stats = [(Path(file).resolve(), Path(file).stat()) for file in self.files]
        return [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats] + [self.field]

    def __iter__(self) -> Iterator[Piece]:
        with given_as(self.option):
            for file in self.files:
                _check_readable(file)
                if builder := _builder(file):
                    yield from self._rows(file, builder)
                else:
                    yield from _text_file(file)

    def stream(self) -> datasets.IterableDataset:
        """The rows of the JSONL or Parquet files, for reading as training goes on."""
        with given_as(self.option):
            for file in self.files:
                _check_readable(file)
        builders = {_builder(file) or Path(file).suffix for file in self.files}
        if len(builders) > 1 or builders - {*_BUILDERS.values()}:
            raise InputError(
                f"data.streaming reads JSONL or Parquet files, all of one kind, not {self.files}; "
                "leave it off: prepared tokens are mapped from disk, not held in memory"
            )
        files = [glob.escape(file) for file in self.files]
        with given_as(self.option), readable(str(files)):
            rows = _loaded(*builders, data_files=files, split="train", streaming=True)
            if builders == {"text"}:
                return _parsed(rows, self.field, ", ".join(files))
            return _only(rows, self.field, ", ".join(files))

    def _rows(self, file: str, builder: str) -> Iterator[Piece]:
        kind = "json" if builder == "text" else builder
        empty = True
        with readable(f"{file} cannot be read as {kind}"):
            rows = _loaded(builder, data_files=glob.escape(file), split="train", streaming=True)
            lines = builder == "text"
            rows = rows if lines else _only(rows, self.field, file)
            text_of = _field if lines else checked
            for row, value in enumerate(_column(rows, "text" if lines else self.field)):
                if not lines or value.strip():
                    empty = False
                    yield text_of(value, f"row {row} of {file}", self.field), True
        if empty:
            raise InputError(f"{file} cannot be read as {kind}: no rows")


class HubDocuments:
    """The documents of a dataset on the Hugging Face hub, or in a local folder of its form.

    Args:
        name: Repository (``owner/name``) or folder.
        config: Name of its configuration.
        split: Split; a slice such as ``train[:1%]`` too, unless it is streamed.
        revision: Commit or tag; the newest at the time of preparation if None.
        field: Column that holds the text.
    """

    def __init__(
        self, name: str, config: str | None, split: str, revision: str | None, field: str
    ) -> None:
        self.name = name
        self.config = config
        self.split = split
        self.revision = revision
        self.field = field

    def identity(self) -> list[Any]:
        """What the documents depend on."""
        return [self.name, self.config, self.split, self.revision, self.field]

    def __iter__(self) -> Iterator[Piece]:
        with readable(f"data: dataset {self.name}"):
            rows = self._load(streaming=False).to_iterable_dataset()
            for row, value in enumerate(_column(rows, self.field)):
                yield checked(value, f"row {row} of dataset {self.name}", self.field), True

    def stream(self) -> datasets.IterableDataset:
        """The rows, for reading from the hub as training goes on."""
        return self._load(streaming=True)

    def _load(self, streaming: bool) -> Any:
        if not Path(self.name).is_dir():
            check_reachable(f"dataset {self.name}", "give data_files")
        with readable(f"data: dataset {self.name}"):
            rows = _loaded(
                self.name,
                self.config,
                split=self.split,
                revision=self.revision,
                streaming=streaming,
            )
            return _only(rows, self.field, f"dataset {self.name}")


def _loaded(*names: Any, **options: Any) -> Any:
    """``datasets.load_dataset``, imported where rows are read: it takes most of a second."""
    from datasets import load_dataset

    return load_dataset(*names, **options)


@contextmanager
def given_as(option: str) -> Iterator[None]:
    """Names the option in what is wrong with the files that it gave."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns what ``datasets`` raises over unreadable input into one line."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except InputError:
        raise
    except (DatasetsError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            raise cause from error  # What is full is a cache, not the input.
        first_line = str(cause).strip().partition("\n")[0]
        raise InputError(f"{what}: {first_line}") from error


def _expand(patterns: list[str]) -> list[str]:
    files = []
    for pattern in patterns:
        found = [pattern]  # a file whose own name holds glob characters
        if not Path(pattern).is_file():
            names = sorted(glob.glob(pattern, recursive=True))
            found = [name for name in names if Path(name).is_file()]
        if not found:
            raise InputError(f"no file matches {pattern!r}")
        files += found
    return list(dict.fromkeys(files))


def _builder(file: str) -> str | None:
    """What reads a file's rows, by its name; None for plain text."""
    return _BUILDERS.get(Path(file).suffix.lower())


def _check_readable(file: str) -> None:
    """Refuses what is empty, compressed or in UTF-16, which would be read as something else."""
    try:
        with open(file, "rb") as opened:
            start = opened.read(8)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
    if not start:
        raise InputError(f"{file} is empty")
    for magic, (kind, remedy) in _COMPRESSED.items():
        if start.startswith(magic):
            raise InputError(f"{file} is compressed ({kind}); decompress it first: {remedy}")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{file} is UTF-16; convert it first, e.g. iconv -f utf-16 -t utf-8")


def _text_file(file: str) -> Iterator[Piece]:
    """Reads a file in pieces that end with a line where they can, without changing a byte."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            piece = lines.read(_PIECE) + lines.readline(_PIECE)
            while piece:
                following = lines.read(_PIECE) + lines.readline(_PIECE)
                yield piece, not following
                piece = following
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not utf-8: byte 0x{error.object[error.start]:02x} cannot "
            f"be decoded; convert it first, e.g. iconv -f latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def _field(line: str, where: str, field: str) -> str:
    """The text in a line of JSON."""
    try:
        row = json.loads(line.removeprefix("\ufeff"))  # The mark that some files begin with.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} cannot be read as json: {error}") from error
    if not isinstance(row, dict) or field not in row:
        has = f"it has {', '.join(row)}" if isinstance(row, dict) else f"it is {line[:40]}"
        raise InputError(f"{where} has no field {field!r}; {has}")
    return checked(row[field], where, field)


def _parsed(lines: Any, field: str, where: str) -> Any:
    """The rows of lines of JSON, with their text alone."""
    kept = lines.filter(lambda row: bool(row["text"].strip()))
    first = next(iter(kept), None)
    if first is None:
        raise InputError(f"{where} cannot be read as json: no rows")
    _field(first["text"], where, field)
    return kept.map(
        lambda row: {field: _field(row["text"], f"a row of {where}", field)},
        remove_columns=[] if field == "text" else ["text"],
    )


def _only(rows: Any, field: str, where: str) -> Any:
    """The rows with their text column alone."""
    known = rows.column_names or list(next(iter(rows), {}))
    if known and field not in known:
        raise InputError(f"{where} has no field {field!r}; it has {', '.join(known)}")
    return rows.select_columns([field]) if known else rows


def _column(rows: datasets.IterableDataset, field: str) -> Iterator[Any]:
    """The values of a column; Arrow tables of many rows are read far faster than rows."""
    for table in rows.with_format("arrow").iter(batch_size=256):
        if field in table.column_names:
            yield from table[field].to_pylist()


def checked(value: Any, where: str, field: str) -> str:
    """A row's text; an InputError that names the row if it is none, or nothing UTF-8 can hold."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {field!r} is no text: {value!r:.60}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = value[error.start]
        raise InputError(
            f"{where}: {field!r} is no text: it holds {half!r}, half of a character"
        ) from error
    return value
