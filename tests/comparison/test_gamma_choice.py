"""Which γ to take, from tables and summaries whose answer is known; nothing is trained here."""

from __future__ import annotations

import json

import pytest

from lit_gamma import InputError
from lit_gamma.comparison.gamma_choice import (
    LOSS,
    gaps,
    in_words,
    judge,
    loss_curves,
    shared_range,
    with_loss,
)
from lit_gamma.comparison.gamma_page import write_choice
from lit_gamma.comparison.sweep_runs import GAMMA, load_sweep
from lit_gamma.comparison.sweep_table import row, write_table

SEEN, UNSEEN = "val/seen/loss", "val/unseen/accuracy"
GAMMAS = (0.4, 0.6, 0.8, 1.0)


def tried(folder, losses, shares, earlier=None, scatter=None):
    """Seeds at each of four γ, with these shares; ``earlier`` are the losses half way."""
    rows = []
    for i, gamma in enumerate(GAMMAS):
        for seed, share in enumerate(shares[i], 1):
            off = scatter[i][seed - 1] if scatter else seed / 1e4
            last = {SEEN: losses[i] + off, UNSEEN: share}
            first = {SEEN: (earlier or losses)[i] + seed / 1e4}
            summary = {
                "status": "finished", "steps": 200, "metrics": last,
                "validations": {"100": first, "200": last},
            }  # fmt: skip
            name = f"g{gamma}-{seed}"
            (folder / name).mkdir(parents=True)
            (folder / name / "summary.json").write_text(json.dumps(summary))
            rows.append(row(name, {GAMMA: gamma}, seed, summary, True))
    write_table(folder, rows)
    return with_loss(load_sweep(folder), SEEN)


GOOD = [[0.1, 0.1, 0.12], [0.3, 0.3, 0.3], [0.9, 0.9, 0.92], [0.88, 0.9, 0.89]]


def test_the_range_that_loses_neither_is_where_both_are_as_good_as_their_best(tmp_path):
    sweep = tried(tmp_path, [2.0, 1.0, 1.0, 1.5], GOOD, earlier=[2.0, 1.8, 1.8, 3.5])
    (loss, runs), (reasoning, _) = judge(sweep, LOSS), judge(sweep, UNSEEN)
    assert {loss.doubt, reasoning.doubt, loss.tells_nothing, reasoning.tells_nothing} == {""}
    assert loss.window.best in (0.6, 0.8)
    assert reasoning.window.best == 0.8
    lower, upper = shared_range([loss, reasoning])
    # Linear between γ tried: 0.01 of the 0.607 that composition gains from 0.6 to 0.8, ...
    assert lower[0] == pytest.approx(0.8 - 0.2 * 0.01 / (0.9067 - 0.3), abs=1e-3)
    # ... and 0.01 of the 0.5 nats that are lost from 0.8 to 1.0.
    assert upper[0] == pytest.approx(0.8 + 0.2 * 0.01 / 0.5, abs=1e-3)
    curves = loss_curves(sweep, runs, [SEEN])
    behind = gaps(curves, 0.8)
    assert list(behind) == [1.0]
    assert behind[1.0][1].to_list() == pytest.approx([3.5 - 1.8, 1.5 - 1.0])
    sentence, trend = in_words([loss, reasoning], curves)
    assert "the range that loses neither is γ 0.80 [" in sentence
    assert "(of those tried 0.8, not 0.6 and 1)" in sentence
    assert "Longer runs may prefer a larger γ" in trend
    assert "γ 1 was 1.700 nats behind at step 100 and 0.500 at step 200" in trend


def test_a_larger_gamma_whose_own_loss_still_falls_is_not_judged(tmp_path):
    # Its gap stays at 0.5, as the best γ learns as fast.
    sweep = tried(tmp_path, [2.0, 1.0, 1.5, 1.6], GOOD, earlier=[2.0, 1.2, 1.7, 1.6])
    loss, runs = judge(sweep, LOSS)
    trend = in_words([loss], loss_curves(sweep, runs, [SEEN]))[1]
    assert "Too short to judge a larger γ: the loss of γ 0.8 fell from 1.700 to 1.500" in trend
    assert "γ 1 " not in trend


def test_nothing_is_recommended_where_seeds_disagree(tmp_path):
    # The best γ by the mean fails in a seed.
    shares = [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [1.0, 0.1, 1.0], [0.1, 0.1, 0.1]]
    sweep = tried(tmp_path, [2.0, 1.0, 1.1, 1.5], shares)
    path, (sentence, trend) = write_choice(sweep, SEEN, UNSEEN)
    assert "nothing is recommended" in sentence
    assert "the range" not in sentence
    assert "No larger γ was catching up in every seed" in trend
    assert sentence.split(";")[0] in path.read_text()


def test_a_measure_that_does_not_tell_gammas_apart_bars_none(tmp_path):
    losses = [[0.01, 0.02, 0.03], [0.02, 0.03, 0.01], [0.03, 0.01, 0.02], [0.01, 0.03, 0.02]]
    sweep = tried(tmp_path, [0.0] * 4, GOOD, scatter=losses)
    loss, reasoning = (judge(sweep, measure)[0] for measure in (LOSS, UNSEEN))
    sentence, _ = in_words([loss, reasoning], {})
    assert "validation loss does not tell the γ apart from the seeds (p = " in sentence
    assert f"the range that loses nothing by {UNSEEN} is γ 0.80 [" in sentence
    # Half way from 0.1067 to 0.9067 lies a third of the way from 0.6 to 0.8, at 0.3 and 0.9067.
    assert f"{UNSEEN} is on the better side of half way from γ 0.67 [" in sentence
    assert "to the largest tried (of those tried 0.8, 1, not 0.6)" in sentence
    flat = tried(tmp_path / "flat", [0.0] * 4, losses, scatter=losses)
    both = [judge(flat, measure)[0] for measure in (LOSS, UNSEEN)]
    assert in_words(both, {})[0].endswith("; nothing is recommended.")


def test_one_seed_tells_nothing_of_chance(tmp_path):
    sweep = tried(tmp_path, [2.0, 1.0, 1.1, 1.5], [[0.1], [0.9], [0.8], [0.1]])
    loss, reasoning = (judge(sweep, measure)[0] for measure in (LOSS, UNSEEN))
    sentence, _ = in_words([loss, reasoning], {})
    assert "validation loss has one seed of each γ, which tells nothing of chance" in sentence
    assert sentence.endswith("nothing is recommended.")
    assert "p = " not in sentence


def test_one_measure_is_best_where_the_other_is_not(tmp_path):
    sweep = tried(tmp_path, [1.0, 1.5, 2.0, 2.5], GOOD)
    judged = [judge(sweep, measure)[0] for measure in (LOSS, UNSEEN)]
    assert shared_range(judged) is None
    assert "no γ loses neither" in in_words(judged, {})[0]
    with pytest.raises(InputError, match="no validation loss"):
        with_loss(sweep, "val/other/loss")
