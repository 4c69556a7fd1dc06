"""Files that are not what their names or users say."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers

from lit_gamma import InputError
from lit_gamma.data import AnchorComposition
from lit_gamma.data.documents import LocalDocuments
from lit_gamma.data.tokenizers import Tokenizer

ROWS = [{"body": f"row {i}", "date": f"2024-01-0{i}"} for i in range(1, 4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def texts(path, field: str = "body") -> list[str]:
    return [text for text, _ in LocalDocuments(str(path), field, "files")]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.NDJSON", "a.Jsonl", "a.JSON"])
def test_json_lines_are_rows_whatever_the_name_s_case(tmp_path, name):
    (tmp_path / name).write_text(LINES)
    assert texts(tmp_path / name) == ["row 1", "row 2", "row 3"]
    with pytest.raises(InputError, match=r"has no field 'text'; it has body, date"):
        texts(tmp_path / name, "text")


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            gzip.compress(LINES.encode(), mtime=0),
            r"compressed \(gzip\); decompress it first: gunzip",
        ),
        (bz2.compress(LINES.encode()), r"compressed \(bzip2\).*bunzip2"),
        (lzma.compress(LINES.encode()), r"compressed \(xz\).*unxz"),
        (zipped(LINES.encode()), r"compressed \(zip\).*unzip"),
        ("plain text".encode("utf-16"), r"is UTF-16; .*iconv -f utf-16 -t utf-8"),
        (b"", "is empty"),
        ("caf\u00e9".encode("latin-1"), "is not utf-8: byte 0xe9"),
    ],
)
@pytest.mark.parametrize("name", ["corpus.txt", "corpus.jsonl", "corpus"])
def test_what_would_be_read_as_something_else_is_refused_by_name(tmp_path, name, written, message):
    (tmp_path / name).write_bytes(written)
    if name.endswith(".jsonl") and "not utf-8" in message:
        message = "cannot be read as json"
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        texts(tmp_path / name)


def sentencepiece_like() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=80, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(["a rose is a rose is a rose"] * 20, trainer)
    return Tokenizer(backend)


@given(st.lists(st.sampled_from(["a", "rose", "is"]), min_size=2, max_size=9), st.data())
def test_a_continuation_keeps_the_space_that_it_begins_with(words, data):
    tokenizer = sentencepiece_like()
    whole = " ".join(words)
    n = data.draw(st.integers(1, len(words) - 1))
    prompt = " ".join(words[:n])
    ids = tokenizer.encode([whole])[0].tolist()
    shared = len(tokenizer.encode([prompt])[0])
    assert prompt + tokenizer.decode(ids[shared:]) == whole


def consumed(batch_size: int, position: int, size_before: int | None) -> torch.Tensor:
    """The sequences that an epoch still trains on after a resume."""
    data = AnchorComposition(n_train=48, n_val=8, batch_size=batch_size)
    data.prepare_data()
    data.setup("fit")
    data.load_state_dict({"consumed": position, "global_size": size_before})
    batches = data.shuffled_batches(48, batch_size, seed=3)
    rest = [batch for _, batch in zip(range(48 // batch_size - batches.position), batches)]  # noqa: B905
    return torch.cat(rest)


@pytest.mark.parametrize("batch_size", [2, 3, 6, 12])
def test_a_resume_with_another_batch_size_goes_on_at_the_same_sequence(batch_size):
    expected = consumed(4, 3, 4)
    assert torch.equal(consumed(batch_size, 3, 4), expected)
    assert len(expected) == 48 - 12


def test_a_resume_in_the_middle_of_a_batch_is_refused():
    with pytest.raises(InputError, match=r"after 12 sequences .* batches of 4 .* batches of 8"):
        consumed(8, 3, 4)


def test_what_looks_like_a_date_or_a_number_stays_the_text_it_is(tmp_path):
    texts = ["2024-05-01T10:00", "2024-05-02", "1e5", "true", "\u2028\u0085|", " x "] * 30
    file = tmp_path / "a.jsonl"
    lines = (json.dumps({"text": t}, ensure_ascii=False) + "\n\n" for t in texts)
    file.write_text("".join(lines), encoding="utf-8-sig")  # With a byte-order mark, as on Windows.
    assert [text for text, _ in LocalDocuments(str(file), "text", "files")] == texts
    assert [row["text"] for row in LocalDocuments(str(file), "text", "files").stream()] == texts


@pytest.mark.parametrize("value", [{"a": 1}, ["a"], 3, 2.5, True, None, "\ud800"])
def test_a_row_that_is_no_text_is_refused_wherever_it_comes(tmp_path, value):
    rows = [{"text": "some words"}] * 300 + [{"text": value}] + [{"text": "more"}] * 300
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"row 300 of .*a.jsonl: 'text' is no text"):
        list(LocalDocuments(str(file), "text", "files"))
    with pytest.raises(InputError, match=r"a row of .*a.jsonl: 'text' is no text"):
        list(LocalDocuments(str(file), "text", "files").stream())
