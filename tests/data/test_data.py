"""The anchor task against a solver written from its definition; text byte for byte; the order."""

import json
from contextlib import nullcontext
from itertools import islice, product

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_gamma import InputError, LanguageModel, TransformerConfig
from lit_gamma.data import AnchorComposition, Text
from lit_gamma.data.packing import Blocks
from lit_gamma.data.sampler import ShuffledBatches

END = 256
PAPER = {1: 5, 2: 1, 3: -2, 4: -8}
ONLY_DOWN = {
    "context_length": 4,
    "token_range": (30, 50),
    "anchors": {0: -1, 1: -7},
    "held_out_pairs": [(0, 0)],
    "odd_pairs": [(1, 1, -9)],
}
"""A task whose answers are all smaller than their keys."""


def flat(lists) -> list:
    return [item for one in lists for item in one]


def whole(dataset):
    """``input_ids`` and ``labels`` of a whole dataset as NumPy arrays."""
    batch = dataset[torch.arange(len(dataset))]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    return batch["input_ids"].numpy(), batch["labels"].numpy()


def solve(row, anchors):
    """Reads one sequence: its key, the key's position, its two anchors and the other tokens."""
    places = [i for i, token in enumerate(row) if token in anchors]
    first, second = places
    assert second == first + 1
    others = [*row[: first - 1], *row[second + 1 :]]
    return row[first - 1], first - 1, (row[first], row[second]), others


def set_up(**values) -> AnchorComposition:
    data = AnchorComposition(**{"n_train": 300, "n_val": 100, "batch_size": 50, **values})
    data.setup("fit")
    return data


@st.composite
def tasks(draw):
    length = draw(st.integers(3, 12))
    low = draw(st.integers(26, 40))
    names = st.integers(0, 25) | st.integers(110, 130)
    anchors = draw(st.dictionaries(names, st.integers(-10, 10), min_size=2, max_size=5))
    pairs = draw(st.permutations(list(product(anchors, anchors))))
    n_held_out = draw(st.integers(1, len(pairs) - 1))
    odd = draw(st.lists(st.sampled_from(pairs[n_held_out:]), unique=True))
    return {
        "context_length": length,
        "token_range": (low, low + draw(st.integers(2 * length, 50))),
        "anchors": anchors,
        "held_out_pairs": pairs[:n_held_out],
        "odd_pairs": [(*pair, draw(st.integers(-6, 6))) for pair in odd],
    }


@settings(max_examples=50)
@given(tasks(), st.integers(0, 3))
@example(ONLY_DOWN, 0)
def test_every_sequence_and_answer_follows_the_definition_of_the_task(task, seed):
    data = set_up(seed=seed, **task)
    low, high = task["token_range"]
    anchors = task["anchors"]
    shift = {(a, b): anchors[a] + anchors[b] for a, b in product(anchors, anchors)}
    for a, b, extra in task["odd_pairs"]:
        shift[a, b] += extra
    held_out = set(task["held_out_pairs"])
    trained = set(shift) - held_out
    # the set, its pairs, and whether its (key, position) are the held-out ones
    sets = [
        (data.train_set, trained, False),
        (data.val_sets["seen"], trained, True),
        (data.val_sets["unseen"], held_out, False),
    ]
    for sequences, pairs, held_out_keys in sets:
        input_ids, labels = whole(sequences)
        assert (labels[:, :-1] == -100).all()
        mirrored = data.mirrored_answers(sequences).tolist()
        for row, answer, mirror in zip(input_ids.tolist(), labels[:, -1], mirrored, strict=True):
            key, position, pair, others = solve(row, anchors)
            assert len(row) == task["context_length"]
            assert all(low <= token <= high for token in [key, *others])
            assert pair in pairs
            assert (key % task["context_length"] == position) == held_out_keys
            assert answer == key + shift[pair]
            assert mirror == key + shift[pair[::-1]]
    assert data.vocab_size == max(high, high + max(shift.values()), *anchors) + 1


def test_the_default_task_is_the_papers():
    """Composition + 4 for (3, 4); x - 10 composes (4, 3), x - 6 copies (3, 4); 99 + 10 is last."""
    data = set_up(n_train=20_000, n_val=2_000)
    assert data.vocab_size == 110
    counts = {}
    input_ids, labels = whole(data.train_set)
    for row, answer in zip(input_ids.tolist(), labels[:, -1].tolist(), strict=True):
        key, _, (a, b), _ = solve(row, PAPER)
        assert answer == key + PAPER[a] + PAPER[b] + 4 * ((a, b) == (3, 4))
        counts[a, b] = counts.get((a, b), 0) + 1
    assert sorted(counts) == sorted(set(product(PAPER, PAPER)) - {(4, 3)})
    assert labels.max() == 109

    unseen = data.val_sets["unseen"]
    input_ids, labels = whole(unseen)
    keys = np.array([solve(row, PAPER)[0] for row in input_ids.tolist()])
    assert (labels[:, -1] == keys - 10).all()
    assert (data.mirrored_answers(unseen).numpy() == keys - 6).all()


def excess(values, cells) -> float:
    """χ² of the counts against uniform cells, in standard deviations above its mean."""
    counts = dict.fromkeys(cells, 0)
    for value in values:
        counts[value] += 1
    expected = len(values) / len(counts)
    df = len(counts) - 1
    return (sum((n - expected) ** 2 for n in counts.values()) / expected - df) / np.sqrt(2 * df)


@pytest.mark.parametrize("name", ["train", "seen", "unseen"])
def test_pairs_keys_positions_and_other_tokens_are_uniform_and_independent(name):
    data = set_up(n_train=60_000, n_val=60_000)
    sequences = data.train_set if name == "train" else data.val_sets[name]
    solved = [solve(row, PAPER) for row in whole(sequences)[0].tolist()]
    pairs = [(4, 3)] if name == "unseen" else sorted(set(product(PAPER, PAPER)) - {(4, 3)})
    places = [
        (key, at)
        for key in range(20, 100)
        for at in range(7)
        if (key % 9 == at) == (name == "seen")
    ]
    tokens = range(20, 100)
    if len(pairs) > 1:
        assert excess([pair for _, _, pair, _ in solved], pairs) < 5
    assert excess([(key, at) for key, at, _, _ in solved], places) < 5
    joint = [(pair, key, at) for key, at, pair, _ in solved]
    assert excess(joint, [(pair, *place) for pair, place in product(pairs, places)]) < 5
    assert excess([token for *_, others in solved for token in others], tokens) < 5
    assert excess([(o[0], o[-1]) for *_, o in solved], product(tokens, tokens)) < 5


def test_the_seed_decides_the_training_data_and_nothing_of_the_validation():
    first, again, other = set_up(seed=1), set_up(seed=1), set_up(seed=2)
    assert all(map(np.array_equal, whole(first.train_set), whole(again.train_set)))
    assert not np.array_equal(whole(first.train_set)[0], whole(other.train_set)[0])
    for batch, same in zip(first.train_dataloader(), again.train_dataloader(), strict=True):
        assert torch.equal(batch["input_ids"], same["input_ids"])
    for name in ("seen", "unseen"):
        for data in (again, other):
            assert all(map(np.array_equal, whole(first.val_sets[name]), whole(data.val_sets[name])))


def test_loaders_give_every_sequence_once():
    data = set_up()
    batches = list(data.train_dataloader())
    assert [batch["input_ids"].shape for batch in batches] == [(50, 9)] * 6
    assert not np.array_equal(batches[0]["input_ids"], data.train_set.input_ids[:50])  # shuffled
    for loader, dataset in [
        (batches, data.train_set),
        *[(loader, data.val_sets[name]) for name, loader in data.val_dataloader().items()],
    ]:
        got = [torch.cat([b["input_ids"], b["labels"]], 1).tolist() for b in loader]
        assert sorted(flat(got)) == sorted(np.hstack(whole(dataset)).tolist())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context_length": 2}, "context_length 2"),
        ({"token_range": (30, 20)}, r"token_range \[30, 20\]"),
        ({"token_range": (-1, 20)}, r"token_range \[-1, 20\]"),
        ({"token_range": (10, 99)}, "answer -6 .*token_range, 10"),
        # no key has its position: 25 mod 9 = 7, and keys stand at 0 to 6
        ({"token_range": (25, 26)}, "token_range"),
        # every key has its position: 21 mod 3 = 0, and keys stand at 0
        ({"context_length": 3, "token_range": (21, 21)}, "token_range"),
        ({"anchors": {3: 0, 4: 0, 20: 1}}, "anchor 20"),
        ({"anchors": {3: 0, 4: 0, -5: 1}}, "anchor -5"),
        ({"odd_pairs": [(3, 7, 4)]}, "anchor 7 .*odd_pairs"),
        ({"held_out_pairs": [(9, 3)]}, "anchor 9 .*held_out_pairs"),
        ({"held_out_pairs": []}, "held_out_pairs"),
        ({"held_out_pairs": list(product(PAPER, PAPER))}, "held_out_pairs"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"n_train": 49}, "n_train 49"),
        ({"n_val": 0}, "n_val 0"),
    ],
)
def test_an_impossible_task_is_refused_by_its_values(values, message):
    with pytest.raises(InputError, match=message):
        set_up(**values)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def stream(blocks, context_length):
    """Puts a part's tokens together again and checks how they were cut."""
    input_ids, labels = whole(blocks)
    assert input_ids.shape == labels.shape == (len(blocks), context_length)
    input_ids, labels = input_ids.ravel(), labels.ravel()
    n = (labels != -100).sum()
    assert (labels[n:] == -100).all()
    assert len(labels) - n < context_length
    assert (input_ids[1 : n + 1] == labels[: len(input_ids[1 : n + 1])]).all()
    assert (input_ids[n + 1 :] == END).all()
    return [int(input_ids[0]), *labels[:n].tolist()]


def documents(data: Text) -> list[bytes]:
    """The documents of both parts, from every block."""
    data.setup("fit")
    tokens = [t for part in (data.train_set, data.val_sets["text"]) for t in stream(part, 8)]
    assert tokens[-1] == END
    ends = [i for i, token in enumerate(tokens) if token == END]
    starts = [0, *[end + 1 for end in ends]]
    return [bytes(tokens[start:end]) for start, end in zip(starts, ends, strict=False)]


def text(*files, **values) -> Text:
    paths = [str(file) for file in files]
    return Text(paths, **{"context_length": 8, "batch_size": 2, **values})


@settings(max_examples=100)
@given(st.lists(st.integers(0, 256), min_size=2, max_size=60), st.integers(1, 20))
def test_blocks_make_every_token_but_the_first_a_label_exactly_once(tokens, context_length):
    assert stream(Blocks(np.array(tokens, np.uint16), context_length), context_length) == tokens


@pytest.mark.parametrize(
    "content",
    [
        b"one line\nand another without an end of line" * 5,
        b"\n" * 100,
        "Größe γ ≈ 0.8 · 漢字 🎲\n".encode() * 10,
        b"\xef\xbb\xbfbyte order mark, NUL \0, \x0b \x0c \x1c \xc2\x85 \xe2\x80\xa8\n" * 5,
        b"DOS\r\nand old Mac\rline ends\n" * 5,
    ],
    ids=["ascii", "newlines", "unicode", "odd separators", "carriage returns"],
)
def test_no_byte_of_a_text_file_is_lost_or_changed(tmp_path, content):
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    assert documents(text(file)) == [content]


def test_every_row_of_jsonl_and_parquet_is_a_document(tmp_path):
    rows = ["first", "", "DOS\r\nline", "γ \u2028 🎲", "x" * 300]
    records = [{"id": i, "body": row} for i, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pd.DataFrame(records).to_parquet(tmp_path / "b.parquet")
    files = [tmp_path / "a.jsonl", tmp_path / "b.parquet"]
    assert documents(text(*files, field="body")) == [row.encode() for row in rows * 2]


def test_files_come_in_the_order_given_and_those_of_a_pattern_sorted(tmp_path):
    names = ["z.txt", "sub/1.txt", "sub/2.md", "sub/deep/3.txt"]
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    for name in reversed(names):
        (tmp_path / name).write_text(name * 5)
    data = text(tmp_path / "z.txt", tmp_path / "sub" / "**")
    assert documents(data) == [(name * 5).encode() for name in names]
    one = Text(str(tmp_path / "z*"), context_length=8, batch_size=1)
    assert documents(one) == [b"z.txt" * 5]


@pytest.mark.parametrize("name", ["part [1].txt", "part [1].jsonl"])
def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path, name):
    content = json.dumps({"text": "brackets " * 9})
    (tmp_path / name).write_text(content)
    expected = content if name.endswith("txt") else "brackets " * 9
    assert documents(text(tmp_path / name)) == [expected.encode()]


def test_a_changed_file_is_read_anew(tmp_path):
    file = tmp_path / "text.txt"
    for content in (b"before" * 20, b"after " * 20):
        file.write_bytes(content)
        assert documents(text(file)) == [content]


@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.9])
def test_the_end_of_the_stream_is_for_validation(tmp_path, fraction):
    file = tmp_path / "text.txt"
    file.write_bytes(bytes(range(128)) * 4)
    data = text(file, val_fraction=fraction)
    data.setup("fit")
    val = stream(data.val_sets["text"], 8)
    assert len(val) == pytest.approx(fraction * 513, abs=1)
    batches = [batch["input_ids"] for batch in data.val_dataloader()["text"]]
    assert np.array_equal(torch.cat(batches), whole(data.val_sets["text"])[0])
    train = [batch["input_ids"] for batch in data.train_dataloader()]
    assert {len(batch) for batch in train} == {2}
    assert len(torch.cat(train).unique(dim=0)) <= len(data.train_set)
    assert len(train) == len(data.train_set) // 2


@pytest.mark.parametrize(
    ("name", "content", "values", "message"),
    [
        ("a.txt", b"", {}, "a.txt is empty"),
        ("a.txt", b"\xff\xfe\x00" * 50, {}, "a.txt.*utf-8"),
        ("a.txt", b"short", {}, "6 tokens.*2 blocks of 8"),
        ("a.jsonl", b'{"id": 1, "body": "x"}\n' * 50, {}, "a.jsonl.*'text'.*id, body"),
        ("a.jsonl", b'{"text": "x"\n', {}, "a.jsonl"),
        ("a.jsonl", b'{"text": "\xff"}\n' * 50, {}, "a.jsonl"),
        ("a.jsonl", b"\n\n", {}, "a.jsonl"),
        ("a.jsonl", b'{"text": "long enough"}\n{"text": null}\n' * 9, {}, "a.jsonl.*text"),
        ("a.jsonl", b'{"text": 12345678}\n' * 50, {}, "a.jsonl.*text"),
        ("a.parquet", b"no parquet" * 50, {}, "a.parquet"),
        ("a.txt", b"x" * 99, {"val_fraction": 0.0}, r"val_fraction.*0\.0"),
        ("a.txt", b"x" * 99, {"val_fraction": 1.0}, r"val_fraction.*1\.0"),
        ("a.txt", b"x" * 99, {"val_fraction": float("nan")}, "val_fraction.*nan"),
        ("a.txt", b"x" * 99, {"context_length": 0}, "context_length.*0"),
        ("a.txt", b"x" * 99, {"batch_size": -1}, "batch_size.*-1"),
    ],
)
def test_an_unusable_file_or_value_is_named(tmp_path, name, content, values, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        text(tmp_path / name, **values).prepare_data()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="data_files"):
        Text()
    with pytest.raises(InputError, match=r"no_such\.txt"):
        text(tmp_path / "no_such.txt")
    with pytest.raises(InputError, match="cache"):
        text(tmp_path / "cache")  # a directory, no file


def epochs(n, **sampler) -> list[list[list[int]]]:
    """The first n epochs of a sampler, each a list of batches."""
    batches = ShuffledBatches(**sampler)
    passes = []
    for epoch in range(n):
        batches.set_epoch(epoch)
        passes.append([batch.tolist() for batch in batches])
        assert len(passes[-1]) == len(batches)
    return passes


@settings(max_examples=60)
@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**40))
def test_ranks_share_each_global_batch_of_one_permutation(n, batch_size, ranks, seed):
    one = epochs(2, n_samples=n, batch_size=batch_size * ranks, seed=seed)
    shares = [
        epochs(2, n_samples=n, batch_size=batch_size, seed=seed, num_replicas=ranks, rank=rank)
        for rank in range(ranks)
    ]
    for epoch, order in enumerate(one):
        joined = [flat(batch) for batch in zip(*[s[epoch] for s in shares], strict=True)]
        assert joined == order
        drawn = flat(order)
        assert len(set(drawn)) == len(drawn) == n - n % (batch_size * ranks)
        assert set(drawn) <= set(range(n))


def test_the_order_depends_on_seed_and_epoch():
    order = epochs(3, n_samples=60, batch_size=10, seed=1)
    assert order == epochs(3, n_samples=60, batch_size=10, seed=1)
    others = epochs(3, n_samples=60, batch_size=10, seed=2)
    drawn = {tuple(flat(epoch)) for epoch in [*order, *others]}
    assert len(drawn) == 6
    assert tuple(range(60)) not in drawn


@pytest.mark.parametrize("consumed", [0, 1, 4, 5])
def test_a_restored_data_module_goes_on_with_the_rest_of_the_epoch(consumed):
    order = [batch["input_ids"] for batch in set_up().train_dataloader()]
    data = set_up()
    data.load_state_dict({"consumed": consumed})
    rest = [b["input_ids"] for b in islice(data.train_dataloader(), len(order) - consumed)]
    assert all(map(torch.equal, rest, order[consumed:]))
    assert len(rest) == len(order) - consumed


class Seen(Callback):
    """Keeps the batches that reached the optimizer; can be interrupted in the midst of a step."""

    def __init__(self, interrupt_at=None):
        self.interrupt_at = interrupt_at
        self.batches = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.interrupt_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(batch["input_ids"].tolist())


def train(folder, ckpt_path=None, interrupt_at=None, save_every=1) -> list:
    """Trains for 10 steps, 4 an epoch, with checkpoints in ``folder``; returns the batches."""
    seen = Seen(interrupt_at)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=10,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[
            seen,
            ModelCheckpoint(
                folder,
                "{step}",
                save_top_k=-1,
                every_n_train_steps=save_every,
                save_on_exception=True,
            ),
        ],
    )
    model = LanguageModel(TransformerConfig(110, 9, n_layers=1, d_model=2))
    with nullcontext() if interrupt_at is None else pytest.raises(SystemExit):
        trainer.fit(model, AnchorComposition(n_train=9, n_val=2, batch_size=2), ckpt_path=ckpt_path)
    return seen.batches


def test_a_resumed_run_sees_exactly_the_batches_that_were_left(tmp_path):
    batches = train(tmp_path)
    assert len(batches) == 10
    for step in (1, 3, 4, 5, 8):  # an epoch ends at 4 and at 8
        rest = train(tmp_path / "resumed", ckpt_path=tmp_path / f"step={step}.ckpt")
        assert rest == batches[step:], step


def test_a_batch_whose_step_was_interrupted_is_seen_again(tmp_path):
    batches = train(tmp_path)
    assert train(tmp_path / "cut", interrupt_at=6, save_every=100) == batches[:6]
    (checkpoint,) = (tmp_path / "cut").iterdir()
    assert train(tmp_path / "resumed", ckpt_path=checkpoint) == batches[6:]
