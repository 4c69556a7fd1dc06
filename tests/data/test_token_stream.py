"""Streamed text: what is read, by whom, and that a resumed stream goes on exactly."""

import json
from itertools import islice

import datasets
import pytest
import torch

from lit_gamma import InputError
from lit_gamma.data import Source, StreamedText, token_stream

END = 256


@pytest.fixture(autouse=True)
def small_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(token_stream, "WINDOW", 12)


@pytest.fixture
def folder(tmp_path):
    """Four shards of 30 documents, each document once."""
    for shard in range(4):
        rows = [{"text": f"<{shard}.{i}:" + "abc" * (i % 7) + ">"} for i in range(30)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{shard}.jsonl").write_text(lines)
    return tmp_path


def streamed(folder, rank=0, processes=1, **values) -> StreamedText:
    settings = {"context_length": 8, "batch_size": 3, "val_fraction": 0.2, "seed": 1, **values}
    data = StreamedText(data_files=f"{folder}/*.jsonl", **settings)
    type(data).ranks = property(lambda self: (processes, rank))
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(autouse=True)
def restore_ranks():
    yield
    if "ranks" in vars(StreamedText):
        del StreamedText.ranks


def taken(data, n) -> list:
    return [batch["input_ids"].tolist() for batch in islice(data.train_dataloader(), n)]


def texts(stream: token_stream.DocumentStream, n_blocks: int) -> list[str]:
    """The complete documents in a stream's next blocks."""
    blocks = stream.blocks(n_blocks, 8)
    assert (blocks[1:, 0] == blocks[:-1, -1]).all()  # every token but the first is a label once
    tokens = [int(blocks[0, 0]), *blocks[:, 1:].ravel().tolist()]
    joined = "".join(chr(t) if t < END else "|" for t in tokens)
    return joined.split("|")[:-1]


def document_stream(folder, rank=0, processes=1) -> token_stream.DocumentStream:
    data = streamed(folder, rank, processes)
    data.train_dataloader()
    return data._stream.streams[0]


def test_an_epoch_brings_every_training_document_once_and_the_held_out_ones_never(folder):
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    written = {json.loads(line)["text"] for line in lines}
    data = streamed(folder)
    batches = [batch["labels"] for batch in data.val_dataloader()["text"]]
    labels = [t for t in torch.cat(batches).ravel().tolist() if t != -100]
    val = "".join(chr(t) if t < END else "|" for t in labels).split("|")[:-1]
    kept = {text for text in written if token_stream.held_out(text, 0.2)}
    assert {"<" + val[0], *val[1:]} == kept  # the very first token is no label
    assert 10 < len(kept) < 40

    training = written - kept
    seen = texts(document_stream(folder), 700)
    epochs = [seen[i * len(training) :][: len(training)] for i in range(3)]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2]) == training
    assert len({tuple(epoch) for epoch in epochs}) > 1  # the shards come in another order


@pytest.mark.parametrize("processes", [2, 3])  # four shards: divided by two, not by three
def test_processes_share_the_documents(folder, processes):
    parts = [texts(document_stream(folder, rank, processes), 60) for rank in range(processes)]
    n = sum(not token_stream.held_out(text, 0.2) for text in {t for p in parts for t in p})
    firsts = [part[: n // processes - 12] for part in parts]
    assert sum(map(len, firsts)) == len({text for part in firsts for text in part})


@pytest.mark.parametrize("consumed", [0, 1, 3, 4, 5, 8, 41, 200])
def test_a_restored_stream_goes_on_with_the_next_batch(folder, consumed):
    """A window is four batches; an epoch some 30."""
    order = taken(streamed(folder), 206)
    data = streamed(folder)
    ahead = islice(data.train_dataloader(), consumed + 1)  # the loader is one batch ahead
    list(ahead)
    state = data._stream.state_dict(consumed)
    resumed = streamed(folder)
    resumed._resume = state
    assert taken(resumed, 6) == order[consumed : consumed + 6]


def test_sources_have_their_shares_of_the_blocks(folder):
    (folder / "other.jsonl").write_text(json.dumps({"body": "zzzzzzz" * 9}) + "\n")
    sources = {
        "a": Source(f"{folder}/[0-3].jsonl", weight=3),
        "z": Source(
            f"{folder}/o*.jsonl", field="body", val_files=f"{folder}/other.jsonl", weight=1
        ),
    }
    data = StreamedText(sources=sources, context_length=8, batch_size=4, val_fraction=0.2)
    data.prepare_data()
    data.setup("fit")
    assert list(data.val_dataloader()) == ["a", "z"]
    blocks = torch.tensor(taken(data, 30)).flatten(0, 1)
    assert ((blocks == ord("z")).any(1).sum() / len(blocks)).item() == 0.25


def test_what_cannot_be_streamed_is_named(folder):
    (folder / "a.txt").write_text("plain " * 50)
    with pytest.raises(InputError, match=r"JSONL or Parquet.*a\.txt"):
        StreamedText(data_files=f"{folder}/a.txt").prepare_data()
    with pytest.raises(InputError, match="'body'; it has text"):
        StreamedText(data_files=f"{folder}/*.jsonl", field="body").prepare_data()
    with pytest.raises(InputError, match=r"no validation text; raise val_fraction"):
        streamed(folder, val_fraction=1e-9)
    data = streamed(folder)
    state = {"consumed": 0, "tokenizer": data.tokenizer.backend.to_str(), "streams": [None, None]}
    with pytest.raises(InputError, match="2 processes, this run to 1"):
        data.load_state_dict(state)
