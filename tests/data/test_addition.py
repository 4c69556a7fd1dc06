"""Addition against Python's own, read off the tokens; which pairs are in which set."""

from __future__ import annotations

from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from helpers.runs import fit
from torch import nn

from lit_gamma import InputError, LanguageModel, TransformerConfig
from lit_gamma.data import Addition, AnchorComposition

SIGNS = "0123456789+="


def set_up(**values) -> Addition:
    data = Addition(**{"n_train": 5000, "n_val": 300, "batch_size": 100, **values})
    data.setup("fit")
    return data


def read(sums) -> list[tuple[int, int]]:
    """The pairs of a set, read off its batch as text, every answer checked."""
    batch = sums[torch.arange(len(sums))]
    pairs = []
    for tokens, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
        question, _, begun = "".join(SIGNS[t] for t in tokens).partition("=")
        answer = "".join(SIGNS[t] for t in labels if t != -100)
        assert labels[: len(question)] == [-100] * len(question)
        assert begun == answer[:-1]
        a, b = question.split("+")
        assert len(a) == len(b) == len(answer) - 1
        assert int(a) + int(b) == int(answer)
        pairs.append((int(a), int(b)))
    return pairs


def distance(pair: tuple[int, int], low: int, high: int) -> int:
    """How many steps of one in both operands it takes into the square."""
    return max(0 if low <= x <= high else min(abs(x - low), abs(x - high)) for x in pair)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"n_train": 30_000, "n_val": 800, "edge": 1},
        {"n_digits": 1, "square": (3, 5), "edge": 2, "n_train": 70, "n_val": 9, "batch_size": 7},
    ],
)
def test_each_set_has_the_pairs_that_it_says_and_training_none_of_them(values):
    data = set_up(**values)
    sets = {name: read(sums) for name, sums in data.val_sets.items()}
    assert list(sets) == ["range", "square", "edge"]
    assert {len(pairs) for pairs in sets.values()} == {data.n_val}
    apart = {name: [distance(p, *data.square) for p in pairs] for name, pairs in sets.items()}
    assert set(apart["square"]) == {0}
    assert set(apart["edge"]) == set(range(1, data.edge + 1))
    assert min(apart["range"]) > 0
    trained = read(data.train_set)
    assert min(distance(pair, *data.square) for pair in trained) > 0
    everything = [*trained, *(pair for pairs in sets.values() for pair in pairs)]
    assert len(set(everything)) == len(everything) == data.n_train + 3 * data.n_val
    assert data.vocab_size == len(SIGNS)
    assert data.context_length == 3 * data.n_digits + 2


def test_operands_are_uniform_outside_of_the_square():
    pairs = np.array(read(set_up(n_train=40_000).train_set))
    # Of a hundred first operands: 100 · 1000 pairs, less 201 for each operand in [400, 600].
    counts = np.bincount(pairs[:, 0] // 100, minlength=10)
    expected = np.full(10, 100 * 1000.0)
    expected[4:6] -= 100 * 201
    expected[6] -= 201
    expected *= 40_000 / expected.sum()
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max())


def test_the_seed_chooses_the_training_pairs_and_nothing_of_the_validation():
    first, again, other = set_up(seed=1), set_up(seed=1), set_up(seed=2)
    assert read(first.train_set) == read(again.train_set)
    assert set(read(first.train_set)) != set(read(other.train_set))
    for name, sums in first.val_sets.items():
        assert torch.equal(sums.pairs, other.val_sets[name].pairs)
    batches = [batch["input_ids"] for batch in first.train_dataloader()]
    assert all(map(torch.equal, batches, (b["input_ids"] for b in again.train_dataloader())))
    resumed = set_up(seed=1)
    resumed.load_state_dict({"consumed": 7})
    assert torch.equal(next(iter(resumed.train_dataloader()))["input_ids"], batches[7])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_digits": 4}, "n_digits must be 1 to 3, got 4"),
        ({"square": (600, 400)}, r"square \[600, 400\] is no range"),
        ({"square": (400, 1000)}, r"square \[400, 1000\] is no range"),
        ({"square": (400, 405)}, r"square \[400, 405\] has 36 pairs, fewer than n_val 300"),
        ({"edge": 0}, "edge 0 has 0 pairs, fewer than n_val 300"),
        ({"n_train": 960_000}, r"n_train 960000 is more than the 958999 pairs"),
        ({"n_train": 99}, "n_train 99 .* batch_size 100"),
        ({"n_val": 0}, "n_val 0"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_an_impossible_task_is_refused_by_its_values(values, message):
    with pytest.raises(InputError, match=message):
        set_up(**values)


class Adds(nn.Module):
    """Adds without carrying to the thousands: right where the sum has three digits."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, tokens, document_ids=None):
        digits = torch.tensor([100, 10, 1])
        answers = (tokens[:, :3] * digits).sum(1) + (tokens[:, 4:7] * digits).sum(1)
        logits = torch.zeros(*tokens.shape, 12) + self.unused
        for place, power in enumerate((100, 10, 1)):
            said = answers // power % 10
            logits[torch.arange(len(tokens)), 8 + place, said] = 1
        return logits


def test_an_answer_counts_when_all_of_its_digits_are_right(tmp_path):
    data = set_up()
    model = LanguageModel(TransformerConfig(12, 11, n_layers=1, d_model=4))
    model.transformer = Adds(model.transformer.config)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (measured,) = [trainer.validate(model, data, verbose=False)[0]]
    for name, sums in data.val_sets.items():
        small = np.mean([a + b < 1000 for a, b in read(sums)])
        assert measured[f"val/{name}/exact_match"] == pytest.approx(small)
        assert measured[f"val/{name}/accuracy"] == pytest.approx((3 + small) / 4)


def test_only_whole_answers_are_matched_as_a_whole(tmp_path: Path):
    anchor = fit(tmp_path, max_steps=1, limit_val_batches=1.0, val_check_interval=1)
    assert not any("exact_match" in name for name in anchor.callback_metrics)
    assert not hasattr(AnchorComposition, "whole_answers")
