"""Token streams, prepared once on disk."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from lit_gamma.data.documents import Piece
from lit_gamma.data.tokenizers import Tokenizer
from lit_gamma.errors import InputError
from lit_gamma.files import parts

_VERSION = 2  # Of what is on disk; part of every fingerprint.
_SUMS = "checksums.json"
_AT_ONCE = 4 << 20  # Characters that are encoded together.

Tokens = npt.NDArray[np.integer]


def cached(cache: Path, identity: Any, make: Callable[[Path], None]) -> Path:
    """The folder of a prepared thing, made if it is not there.

    It is made beside its final place and moved there when it is whole, so that what a later run
    finds is complete. One process of each machine then compares its files with their checksums.

    Args:
        cache: Folder of all prepared things.
        identity: What the thing depends on, as JSON can write it.
        make: Fills the folder it is given.

    Raises:
        InputError: The disk is full, the cache cannot be written, or what it holds was changed.
    """
    fingerprint = hashlib.sha256(json.dumps([_VERSION, identity]).encode()).hexdigest()[:24]
    folder = cache / fingerprint
    if folder.is_dir():
        if os.environ.get("LOCAL_RANK", "0") == "0":
            _check(folder)
        return folder
    draft = cache / f"{fingerprint}.{uuid.uuid4().hex[:8]}"
    try:
        draft.mkdir(parents=True)
        make(draft)
        (draft / _SUMS).write_text(json.dumps({p.name: _checksum(p) for p in draft.iterdir()}))
        os.replace(draft, folder)
    except OSError as error:
        if not folder.is_dir():  # Another process may have been faster.
            raise InputError(
                f"data.cache_dir: {cache} cannot take the prepared tokens: {error.strerror}; make "
                "room or give --data.cache_dir a folder elsewhere (nothing half-written is left)"
            ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _check(folder: Path) -> None:
    try:
        written = json.loads((folder / _SUMS).read_bytes())
        whole = all(_checksum(folder / name) == value for name, value in written.items())
    except (OSError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise InputError(f"{folder} is damaged; delete it, it will be made again")


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    for part in parts(path):
        value = zlib.crc32(part, value)
    return value


def write_tokens(documents: Iterable[Piece], tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokens of documents, an end-of-text token after each, and what they are.

    Args:
        documents: The documents, in pieces.
        tokenizer: Encodes them.
        folder: Gets ``tokens.bin`` (little-endian unsigned integers) and ``tokens.json``.
    """
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    end = np.array([tokenizer.end_of_text], dtype)
    written = longest = length = 0
    progress = tqdm(desc="preparing tokens", unit="char", unit_scale=True, delay=2, leave=False)
    with open(folder / "tokens.bin", "wb") as file, progress:
        for pieces in _together(documents):
            encoded = tokenizer.encode([text for text, _ in pieces])
            for tokens, (text, ends) in zip(encoded, pieces, strict=True):
                file.write(tokens.astype(dtype).tobytes())
                length += len(tokens)
                if ends:
                    file.write(end.tobytes())
                    written, longest, length = written + length + 1, max(longest, length + 1), 0
                progress.update(len(text))
        file.flush()
        os.fsync(file.fileno())
    about = {"n_tokens": written, "dtype": dtype.str, "longest_document": longest}
    (folder / "tokens.json").write_text(json.dumps(about))


def _together(documents: Iterable[Piece]) -> Iterator[list[Piece]]:
    pieces: list[Piece] = []
    characters = 0
    for piece in documents:
        pieces.append(piece)
        characters += len(piece[0])
        if characters >= _AT_ONCE or len(pieces) >= 4096:
            yield pieces
            pieces, characters = [], 0
    if pieces:
        yield pieces


class TokenFile:
    """A part of a prepared stream.

    The file is mapped anew for every read, so that its pages are the system's to keep or drop and
    a corpus larger than memory stays out of it.

    Args:
        folder: Where :func:`write_tokens` wrote.
        start: First token of the part.
        stop: The token after its last; the end of the stream if None.
    """

    def __init__(self, folder: Path, start: int = 0, stop: int | None = None) -> None:
        about = json.loads((folder / "tokens.json").read_text())
        self.path = folder / "tokens.bin"
        self.dtype = about["dtype"]
        self.longest_document: int = about["longest_document"]
        self.start = start
        self.length = (about["n_tokens"] if stop is None else stop) - start
        self.folder = folder

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: npt.NDArray[np.int64]) -> Tokens:
        """The tokens at the given places of the part."""
        with open(self.path, "rb", buffering=0) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        tokens: Tokens = np.frombuffer(mapped, self.dtype)
        return tokens[self.start + index]

    def split(self, at: int) -> tuple[TokenFile, TokenFile]:
        """The parts before and from a token on."""
        end = self.start + self.length
        middle = self.start + at
        return TokenFile(self.folder, self.start, middle), TokenFile(self.folder, middle, end)
