"""Kneser-Ney: against its formula written out with dictionaries, and a source of known entropy."""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_gamma import InputError
from lit_gamma.data.ngram import KneserNey

VOCAB = 4


class Slow:
    """The formula as it stands in the docstring, one n-gram at a time."""

    def __init__(self, corpus, order):
        grams = Counter(
            tuple(ids[i : i + order]) for ids in corpus for i in range(len(ids) - order + 1)
        )
        self.counts = {order: grams}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])

    def p(self, word, context):
        n = len(context) + 1
        lower = self.p(word, context[1:]) if context else 1 / VOCAB
        counts = self.counts[n]
        after = {gram: c for gram, c in counts.items() if gram[:-1] == context}
        if not after:
            return lower
        once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
        d = once / (once + 2 * twice) if once and twice else 0.5
        kept = max(counts[(*context, word)] - d, 0)
        return (kept + d * len(after) * lower) / sum(after.values())


@given(
    st.lists(st.lists(st.integers(0, VOCAB - 2), max_size=30), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_it_is_the_formula_and_sums_to_one(corpus, order):
    corpus = [*corpus, [0, 1, 0]]
    model = KneserNey([np.array(ids, np.uint16) for ids in corpus], order, VOCAB)
    windows = np.array(list(product(range(VOCAB), repeat=order)))
    p = np.exp(-model.loss(windows))
    slow = Slow(corpus, order)
    expected = [slow.p(gram[-1], tuple(gram[:-1])) for gram in windows.tolist()]
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    np.testing.assert_allclose(p.reshape(-1, VOCAB).sum(1), 1, rtol=1e-12)


def test_missing_tokens_leave_the_shorter_context():
    ids = np.random.default_rng(0).integers(0, 20, 5000)
    model = KneserNey([ids], 3, 20)
    windows = np.array([[-1, 3, 7], [-1, -1, 7], [-1, 3, 7]])
    p = np.exp(-model.loss(windows))
    assert p[0] == p[2] != p[1]
    every = np.stack([np.full(20, -1), np.full(20, 3), np.arange(20)], 1)
    assert np.exp(-model.loss(every)).sum() == pytest.approx(1, rel=1e-12)


def test_a_markov_source_is_predicted_to_its_entropy_by_bigrams_and_not_by_unigrams():
    generator = np.random.default_rng(1)
    transition = generator.dirichlet(np.full(30, 0.1), size=30)
    drawn = [0]
    for _ in range(60_000):
        drawn.append(generator.choice(30, p=transition[drawn[-1]]))
    train, held_out = np.array(drawn[:50_000]), np.array(drawn[50_000:])
    windows = np.lib.stride_tricks.sliding_window_view(held_out, 3)
    source = -np.log(transition[windows[:, 1], windows[:, 2]]).mean()
    unigram, bigram, trigram = (
        KneserNey([train], n, 30).loss(windows[:, -n:]).mean() for n in (1, 2, 3)
    )
    shares = np.bincount(windows[:, 2], minlength=30) / len(windows)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    assert unigram == pytest.approx(entropy, abs=0.02)
    assert source < bigram < source + 0.02
    assert source < trigram < source + 0.08  # it can know no more, and has more to learn
    assert entropy - source > 1


def test_more_n_grams_than_64_bits_can_number_are_refused():
    with pytest.raises(InputError, match="4-grams of 100000 tokens exceed 64 bits"):
        KneserNey([np.arange(9)], 4, 100_000)
