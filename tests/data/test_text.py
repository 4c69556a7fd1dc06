"""Text of several sources: tokenizers, the cache, the mixture, the hub, and what goes wrong."""

import json
import re
import resource
import socket
import time
from contextlib import nullcontext
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import tokenizers
import torch
from huggingface_hub import constants
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gamma import InputError
from lit_gamma.data import Source, Text, prepared
from lit_gamma.data.packing import document_ids
from lit_gamma.data.sampler import MixedBatches
from lit_gamma.data.tokenizers import ByteTokenizer, load_tokenizer

WORDS = "the cat sat on the mat and the dog ran after the cat "


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def text(files, **values) -> Text:
    data = Text(str(files), **{"context_length": 8, "batch_size": 2, **values})
    data.prepare_data()
    data.setup("fit")
    return data


def tokens_of(data: Text) -> list[int]:
    """All tokens, from the labels of every block and the first input."""
    stream = []
    for blocks in (*data.train_set.parts, *data.val_sets.values()):
        batch = blocks[torch.arange(len(blocks))]
        labels = batch["labels"].ravel().tolist()
        stream += [int(batch["input_ids"][0, 0]), *(t for t in labels if t != -100)]
    return stream


def jsonl(path: Path, texts, field="text") -> Path:
    path.write_text("".join(json.dumps({field: t}) + "\n" for t in texts))
    return path


@given(st.text(max_size=30))
def test_bytes_are_what_the_backend_encodes_and_decode_to_the_text(written):
    tokenizer = ByteTokenizer()
    (tokens,) = tokenizer.encode([written])
    assert tokens.tolist() == list(written.encode())
    backend = tokenizer.backend.encode(written, add_special_tokens=False)
    assert tokens.tolist() == backend.ids
    assert tokenizer.decode(tokens.tolist()) == written
    assert tokenizer.decode([256]) == "<|endoftext|>"


def test_a_bpe_of_the_text_loses_no_token_and_decodes_to_every_document(tmp_path):
    documents = [WORDS * 5, "", "Größe 漢字 🎲\r\n", "a literal <|endoftext|> here", WORDS]
    data = text(jsonl(tmp_path / "a.jsonl", documents * 3), tokenizer="bpe:290")
    assert data.vocab_size == 290
    end = data.tokenizer.end_of_text
    stream = tokens_of(data)
    assert len(stream) < len("".join(documents * 3).encode()) / 2
    ends = [i for i, token in enumerate(stream) if token == end]
    starts = [0, *(i + 1 for i in ends)]
    read = [data.tokenizer.decode(stream[a:b]) for a, b in zip(starts, ends, strict=False)]
    assert read == documents * 3


def test_any_tokenizer_json_is_used_without_its_truncation(tmp_path):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"cat": 3, "[UNK]": 70_000, "</s>": 9, "the": 4}, "[UNK]")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.enable_truncation(3)
    backend.save(str(tmp_path / "t.json"))
    file = jsonl(tmp_path / "a.jsonl", ["the cat sat"] * 40)
    data = text(file, tokenizer=str(tmp_path / "t.json"), vocab_multiple_of=64)
    assert data.vocab_size == 70_016
    assert tokens_of(data) == [4, 3, 70_000, 9] * 40
    other = text(file, tokenizer=str(tmp_path / "t.json"), end_of_text="the")
    assert tokens_of(other) == [4, 3, 70_000, 4] * 40


def test_a_large_text_file_is_read_in_pieces_without_a_seam(tmp_path, monkeypatch):
    monkeypatch.setattr("lit_gamma.data.documents._PIECE", 7)
    content = "Größe\r\nγ 漢字\n\n🎲" * 30 + "no line end " * 20
    (tmp_path / "a.txt").write_text(content, newline="")
    assert bytes(tokens_of(text(tmp_path / "a.txt"))[:-1]).decode() == content


def test_tokens_are_prepared_once_per_file_and_tokenizer(tmp_path, monkeypatch):
    written = []
    original = prepared.write_tokens
    monkeypatch.setattr(
        "lit_gamma.data.text.write_tokens",
        lambda *args: (written.append(args[1]), original(*args)),
    )
    file = tmp_path / "a.txt"
    file.write_text(WORDS * 20)
    for context_length in (8, 8, 16):  # the block's length is no part of what is prepared
        text(file, context_length=context_length)
    assert len(written) == 1
    for _ in range(2):
        text(file, tokenizer="bpe:270")
    assert len(written) == 2
    text(file, cache_dir=str(tmp_path / "elsewhere"))
    assert len(list((tmp_path / "elsewhere").glob("*/tokens.bin"))) == 1
    (tokens,) = (tmp_path / "elsewhere").glob("*/tokens.bin")
    whole = {path: path.read_bytes() for path in tokens.parent.iterdir()}
    assert len(whole) == 3
    for path, content in whole.items():
        for damaged in (content[:-1], b"", b"[]", bytes([content[0] ^ 8]) + content[1:]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=f"{tokens.parent} is damaged; delete it"):
                text(file, cache_dir=str(tmp_path / "elsewhere"))
        path.write_bytes(content)
    text(file, cache_dir=str(tmp_path / "elsewhere"))


def test_a_preparation_cut_short_leaves_nothing_to_trust(tmp_path):
    content = WORDS.encode() * 2000
    (tmp_path / "a.txt").write_bytes(content + b"\xff")
    with pytest.raises(InputError, match="byte 0xff"):
        text(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(content)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(InputError, match=r"cache_dir: .*cache.* cannot take.*make room"):
            text(tmp_path / "a.txt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "cache").rglob("tokens*"))
    assert len(tokens_of(text(tmp_path / "a.txt"))) == len(content) + 1


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 10)), min_size=1, max_size=4),
    st.integers(0, 2**40),
)
def test_a_mixture_has_its_shares_and_repeats_nothing_before_all_was_seen(sources, seed):
    sizes, weights = zip(*sources, strict=True)
    n = sum(sizes)
    batches = MixedBatches(sizes, weights, 1, seed)
    epochs = [batches.order(epoch).tolist() for epoch in range(5)]
    starts = np.cumsum([0, *sizes])
    for source, (size, weight) in enumerate(sources):
        members = range(starts[source], starts[source + 1])
        seen = [[i for i in epoch if i in members] for epoch in epochs]
        for part in seen:
            assert abs(len(part) - n * weight / sum(weights)) < 1
        counts = np.bincount(np.concatenate(seen).astype(int) - members.start, minlength=size)
        assert counts.max() - counts.min() <= 1  # whole passes, and part of one
    assert epochs[0] == MixedBatches(sizes, weights, 1, seed).order(0).tolist()
    ranks = [MixedBatches(sizes, weights, 1, seed, 2, rank) for rank in (0, 1)]
    shared = [[int(b) for b in rank] for rank in ranks]
    assert [i for pair in zip(*shared, strict=True) for i in pair] == epochs[0][: n // 2 * 2]


def test_each_source_has_its_share_and_a_validation_set_of_its_name(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 4000)
    (tmp_path / "b.txt").write_text("b" * 400)
    jsonl(tmp_path / "c.jsonl", ["c" * 50] * 3, "body")
    sources = {
        "a": Source(str(tmp_path / "a.txt"), weight=1),
        "b": Source(
            str(tmp_path / "b.txt"), val_files=str(tmp_path / "c.jsonl"), field="body", weight=3
        ),
    }
    data = Text(sources=sources, context_length=8, batch_size=4)
    data.prepare_data()
    data.setup("fit")
    batches = torch.cat([batch["labels"][:, 2] for batch in data.train_dataloader()])
    assert (batches == ord("b")).float().mean().item() == pytest.approx(0.75, abs=0.01)
    labels = {n: torch.cat([b["labels"] for b in v]) for n, v in data.val_dataloader().items()}
    assert list(labels) == ["a", "b"]
    assert set(labels["a"].unique().tolist()) == {-100, ord("a"), 256}
    assert set(labels["b"].unique().tolist()) == {ord("c"), 256}


def test_more_processes_than_batches_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a" * 100)
    data = text(tmp_path / "a.txt", batch_size=4)
    assert len(list(data.train_dataloader())) == 3
    monkeypatch.setattr(Text, "ranks", (4, 0))
    with pytest.raises(InputError, match=r"12 blocks .* batch_size 4 on each of 4 processes"):
        data.train_dataloader()


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=3))
def test_a_document_begins_with_the_end_of_text_before_it(rows):
    expected = [[row[: i + 1].count(3) for i in range(6)] for row in rows]
    assert document_ids(torch.tensor(rows), 3).tolist() == expected


def test_masked_documents_reach_the_batch(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", ["x" * 9] * 40)
    batch = next(iter(text(file, mask_documents=True).train_dataloader()))
    assert torch.equal(batch["document_ids"], (batch["input_ids"] == 256).cumsum(1))
    with pytest.raises(InputError, match=r"context_length 11 .* longest document \(10 tokens\)"):
        text(file, mask_documents=True, context_length=11)


@pytest.fixture
def dataset(tmp_path) -> str:
    """A folder in the form of a hub dataset: two configurations, two splits."""
    folder = tmp_path / "owner" / "set"
    for config in ("small", "large"):
        (folder / config).mkdir(parents=True)
        for split in ("train", "validation"):
            rows = [{"id": i, "text": f"{config} {split} {i}"} for i in range(20)]
            pd.DataFrame(rows).to_parquet(folder / config / f"{split}.parquet")
    configs = "".join(
        f"- config_name: {c}\n  data_files:\n  - {{split: train, path: {c}/train.parquet}}\n"
        f"  - {{split: validation, path: {c}/validation.parquet}}\n"
        for c in ("small", "large")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(folder)


def test_a_dataset_is_read_by_config_and_split(dataset):
    source = Source(dataset=dataset, config="large", split="train[:15]", val_split="validation")
    data = Text(sources={"set": source}, context_length=8, batch_size=2)
    data.prepare_data()
    data.setup("fit")
    documents = "".join(chr(t) if t < 256 else "\n" for t in tokens_of(data)).split("\n")
    expected = [f"large train {i}" for i in range(15)]
    expected += [f"large validation {i}" for i in range(20)]
    assert documents == [*expected, ""]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config": "medium"}, "'medium' not found.*small"),
        ({"config": "large", "split": "dev"}, 'Unknown split "dev".*train'),
        ({"config": "large", "field": "body"}, "no field 'body'; it has id, text"),
        ({"config": "large", "field": "id"}, "row 0 of dataset .*'id' is no text: 0"),
        ({"data_files": "a.txt"}, "sources.set: give either"),
        ({"dataset": None}, "sources.set: give either"),
        ({"config": "large", "weight": 0.0}, r"sources.set: weight must be positive, got 0\.0"),
    ],
)
def test_a_wrong_source_is_named(dataset, values, message):
    with pytest.raises(InputError, match=message):
        Text(sources={"set": Source(**{"dataset": dataset, **values})}).prepare_data()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer": "bpe"}, "'bpe': write bpe:SIZE"),
        ({"tokenizer": "bpe:99"}, "bpe:99.*at least 257"),
        ({"tokenizer": "bpe:9999"}, "bpe:9999: the text has only 2.. different tokens"),
        ({"tokenizer": "no.json"}, r"no\.json does not exist"),
        ({"tokenizer": "a.txt"}, r"a\.txt is no tokenizer\.json"),
        ({"tokenizer": "no/such"}, "'no/such' is neither bytes"),
        ({"sources": {"a": Source("a.txt")}}, "beside data.sources"),
        ({"end_of_text": "<end>"}, r"no token <end>; name one of <\|endoftext\|>"),
        ({"vocab_multiple_of": 0}, "vocab_multiple_of.*0"),
        ({"cache_dir": "a.txt"}, r"cache_dir: a\.txt cannot take"),
    ],
)
def test_an_impossible_value_is_named(tmp_path, monkeypatch, values, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    Path("a.txt").write_text(WORDS * 9)
    with pytest.raises(InputError, match=message):
        Text(**{"data_files": "a.txt", **values}).prepare_data()


def test_a_tokenizer_without_an_end_of_text_lists_what_it_has(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"cat": 0, "<e>": 1}, "cat"))
    backend.add_special_tokens(["<e>"])
    backend.save(str(tmp_path / "t.json"))
    with pytest.raises(InputError, match=r"no token <\|endoftext\|> or .*; name one of <e>"):
        load_tokenizer(str(tmp_path / "t.json"))
    assert load_tokenizer(str(tmp_path / "t.json"), "<e>").end_of_text == 1


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
def test_an_unreachable_hub_is_said_within_five_seconds(monkeypatch, tmp_path, answers):
    """A port that refuses, and one that takes the connection but never answers."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) if answers else nullcontext() as server:
        port = server.getsockname()[1] if answers else 9
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        start = time.monotonic()
        with pytest.raises(InputError, match=r"hub http.*cannot be reached.*HF_HUB_OFFLINE=1") as e:
            Text(sources={"set": Source(dataset="owner/set")}).prepare_data()
        assert time.monotonic() - start < 5
        assert "\n" not in str(e.value)
        assert re.search("give data_files", str(e.value))


def test_what_the_hub_has_given_once_needs_no_hub(monkeypatch, dataset):
    data = Text(sources={"set": Source(dataset=dataset, config="small")}, context_length=8)
    data.prepare_data()
    monkeypatch.setattr(
        "datasets.load_dataset",
        lambda *args, **kwargs: pytest.fail("was asked again"),
    )
    Text(sources={"set": Source(dataset=dataset, config="small")}, context_length=8).prepare_data()
