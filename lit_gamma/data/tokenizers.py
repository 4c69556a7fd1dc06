"""Text to tokens: bytes, a BPE trained on the corpus, or any tokenizer of the field."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from lit_gamma.data.documents import Piece
from lit_gamma.data.hub import check_reachable
from lit_gamma.errors import InputError

END_OF_TEXT = "<|endoftext|>"
"""The token between documents, of our own tokenizers."""

MOST_TOKENS = 1_000_000
"""Largest vocabulary of a BPE that is trained here; its trainer takes memory in proportion."""

_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_BPE_CHARACTERS = 100_000_000


class Tokenizer:
    """A tokenizer of the ``tokenizers`` library, with the token that ends a document.

    Args:
        backend: The tokenizer. Special tokens that stand in a text are encoded as plain text.
        end_of_text: The token that ends a document; found by its usual names if None.

    Attributes:
        end_of_text: Its id.
        vocab_size: One more than the largest id.

    Raises:
        InputError: There is no such token.
    """

    def __init__(self, backend: tokenizers.Tokenizer, end_of_text: str | None = None) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self.backend = backend
        vocabulary = backend.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        names = (end_of_text,) if end_of_text else _KNOWN_ENDS
        found = [vocabulary[name] for name in names if name in vocabulary]
        if not found:
            special = [t.content for t in backend.get_added_tokens_decoder().values()]
            raise InputError(
                f"data.end_of_text: the tokenizer has no token {' or '.join(names)}; "
                f"name one of {', '.join(special) or 'its vocabulary'}"
            )
        self.end_of_text = found[0]
        self._letter = backend.encode("a", add_special_tokens=False).ids[-1]

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.integer]]:
        """Encodes texts on all cores, without adding special tokens."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, tokens: list[int]) -> str:
        """The text that tokens add to a text before them; what is no valid text becomes U+FFFD.

        Decoders in the manner of SentencePiece leave out the space before the first token, as if a
        text began with it.
        """
        before = [self._letter]
        text: str = self.backend.decode(before + tokens, skip_special_tokens=False)
        return text[len(self.backend.decode(before, skip_special_tokens=False)) :]


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes as tokens 0 to 255, and 256 between documents."""

    def __init__(self, end_of_text: str | None = None) -> None:
        letters = _byte_letters()
        backend = tokenizers.Tokenizer(models.BPE(vocab=letters, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([END_OF_TEXT])
        super().__init__(backend, end_of_text)

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.integer]]:
        """Encodes texts; the same as the backend does, a hundred times faster."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


def _byte_letters() -> dict[str, int]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(256 + i): byte for i, byte in enumerate(others)}


def bpe_size(name: str) -> int | None:
    """The vocabulary size in ``bpe:SIZE``; None for any other name."""
    match = re.fullmatch(r"bpe:(\d+)", name)
    if match is None and name.partition(":")[0] == "bpe":
        raise InputError(f"data.tokenizer {name!r}: write bpe:SIZE, such as bpe:4096")
    if match and int(match[1]) < 257:
        raise InputError(f"data.tokenizer {name!r}: a BPE has at least 257 tokens, one per byte")
    if match and int(match[1]) > MOST_TOKENS:
        raise InputError(f"data.tokenizer {name!r}: a BPE may have at most {MOST_TOKENS} tokens")
    return int(match[1]) if match else None


def train_bpe(corpora: Iterable[Iterable[Piece]], vocab_size: int) -> tokenizers.Tokenizer:
    """Trains a byte-level BPE on the first 100 million characters of each corpus.

    Args:
        corpora: The documents of each source.
        vocab_size: Size of the vocabulary, end-of-text included.

    Returns:
        The tokenizer, whose every text decodes to itself.

    Raises:
        InputError: The corpora do not have that many different tokens.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((t for corpus in corpora for t in _beginning(corpus)), trainer)
    if backend.get_vocab_size() < vocab_size:
        raise InputError(
            f"data.tokenizer bpe:{vocab_size}: the text has only {backend.get_vocab_size()} "
            f"different tokens; write bpe:{backend.get_vocab_size()} or less"
        )
    return backend


def _beginning(corpus: Iterable[Piece]) -> Iterator[str]:
    characters = 0
    for text, _ in corpus:
        characters += len(text)
        yield text
        if characters > _BPE_CHARACTERS:
            return


def load_tokenizer(name: str, end_of_text: str | None = None) -> Tokenizer:
    """Loads a tokenizer that exists already.

    Args:
        name: ``bytes``, the path of a ``tokenizer.json``, or a repository of the hub (``gpt2``).
        end_of_text: The token between documents; found by its usual names if None.

    Raises:
        InputError: It cannot be found or read.
    """
    if name == "bytes":
        return ByteTokenizer(end_of_text)
    file = Path(name) if name.endswith(".json") or Path(name).is_file() else _from_hub(name)
    if not file.is_file():
        raise InputError(f"data.tokenizer: {name} does not exist")
    try:
        backend = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises nothing narrower.
        raise InputError(f"data.tokenizer: {name} is no tokenizer.json: {error}") from error
    return Tokenizer(backend, end_of_text)


def _from_hub(name: str) -> Path:
    try:
        cached = huggingface_hub.try_to_load_from_cache(name, "tokenizer.json")
        if isinstance(cached, str):
            return Path(cached)
        check_reachable(f"data.tokenizer {name}", "give the path of a tokenizer.json")
        return Path(huggingface_hub.hf_hub_download(name, "tokenizer.json"))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InputError(
            f"data.tokenizer {name!r} is neither bytes, bpe:SIZE, a file nor to be had from the "
            f"hub: {first_line}"
        ) from error
