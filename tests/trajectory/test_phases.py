"""Phases: on curves whose phases are known, with noise and without, and on tables."""

from __future__ import annotations

import math
from dataclasses import fields
from math import inf, nan

import numpy as np
import pandas as pd
import pytest

from lit_gamma import InputError
from lit_gamma.callbacks import Schedule
from lit_gamma.trajectory.phase_finding import Phases, find_phases, phases_of, phases_of_roles
from lit_gamma.trajectory.phase_words import phases_in_words

LOG_SPACED = [s for s in range(3001) if Schedule(per_decade=20, dense_until=10).due(s)]
EVERY = list(range(3001))


def bump(steps, height=1.0, left=0.35, right=0.5, at=120, kept=0.4):
    """ln(value): rises to a peak at a step, falls to a share of its height."""
    x = np.log10(1 + np.array(steps)) - math.log10(1 + at)
    fall = kept + (1 - kept) * np.exp(-((x / right) ** 2))
    return height * np.where(x < 0, np.exp(-((x / left) ** 2)), fall)


def noisy(curve, noise, seed):
    return np.exp(curve + noise * np.random.default_rng(seed).standard_normal(len(curve)))


@pytest.mark.parametrize("steps", [LOG_SPACED, EVERY])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_peak_without_noise_is_found_within_its_neighbours(steps, sign):
    found = find_phases(steps, np.exp(sign * bump(steps)), sign)
    assert found.condensation_step == pytest.approx(120, rel=0.13)  # a point of the grid
    assert found.condensation_low < 120 < found.condensation_high
    assert found.extreme == pytest.approx(np.exp(sign), rel=0.05)
    assert found.end == pytest.approx(np.exp(sign * bump([3000])[0]), rel=0.05)
    # Within 10 % of the peak until the fall of 0.6 has done 1 - exp(-(x / 0.5)²) = 0.16 of it.
    onset = 121 * 10 ** (0.5 * math.sqrt(-math.log(1 - math.log(1.1) / 0.6))) - 1
    assert found.expansion_step == pytest.approx(onset, rel=0.13)
    assert found.expansion_low < onset < found.expansion_high


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.02, 0.08])
def test_intervals_hold_the_peak_as_often_as_they_say(noise):
    found = [find_phases(LOG_SPACED, noisy(bump(LOG_SPACED), noise, seed), 1) for seed in range(60)]
    held = [f.condensation_low <= 120 <= f.condensation_high for f in found]
    assert np.mean(held) > 0.8
    width = np.median([f.condensation_high / f.condensation_low for f in found])
    assert 1.2 < width < (2 if noise == 0.02 else 4)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [LOG_SPACED, EVERY])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_a_flat_curve_has_no_phase(steps, noise):
    for seed in range(30):
        found = find_phases(steps, noisy(np.zeros(len(steps)), noise, seed), 1)
        assert math.isnan(found.condensation_step)
        assert math.isnan(found.expansion_step)
        assert found.start == pytest.approx(1, abs=3 * noise + 1e-9)


def test_a_rise_that_stays_condenses_without_expanding():
    plateau = bump(LOG_SPACED, kept=1.0)
    for seed in range(20):
        found = find_phases(LOG_SPACED, noisy(plateau, 0.02, seed), 1)
        assert found.condensation_step > 60
        assert math.isnan(found.expansion_step)
    rising = find_phases(LOG_SPACED, np.exp(np.log10(1 + np.array(LOG_SPACED)) / 3), 1)
    assert rising.condensation_high == math.inf
    assert math.isnan(rising.expansion_step)


def test_a_change_below_the_smallest_that_counts_is_none():
    small = np.exp(bump(LOG_SPACED, height=0.08))
    assert math.isnan(find_phases(LOG_SPACED, small, 1).condensation_step)
    assert find_phases(LOG_SPACED, small, 1, min_change=0.05).condensation_step > 0
    assert math.isnan(find_phases([0, 1, 2], [1, 5, 1], 1).condensation_step)  # too few


def test_a_steep_fall_that_is_measured_seldom_and_stays_does_not_expand():
    tiers = Schedule(per_decade=4, dense_until=3)
    x = np.log10(1 + np.array([s for s in range(1501) if tiers.due(s) or s % 120 == 0]))
    for begin in np.linspace(1.5, 2.5, 30):
        fall = -1.5 * np.clip((x - begin) / 0.1, 0, 1)
        found = find_phases(10**x - 1, np.exp(fall), -1)
        assert found.condensation_step > 0
        assert math.isnan(found.expansion_step), begin


def test_a_sparse_curve_that_comes_back_by_a_fifth_has_both_phases():
    """As one matrix of the default run: four measurements per decade, and every 120 steps."""
    tiers = Schedule(per_decade=4, dense_until=3)
    steps = np.array([s for s in range(1501) if tiers.due(s) or s % 120 == 0])
    x = np.log10(1 + steps)
    down, up = ((np.tanh(6 * (x - np.log10(at))) + 1) / 2 for at in (80, 600))
    found = find_phases(steps, np.exp(-1.2 * down + math.log(1.2) * up), -1)
    assert found.extreme == pytest.approx(math.exp(-1.2), rel=0.05)
    assert found.end == pytest.approx(1.2 * math.exp(-1.2), rel=0.02)
    assert 178 <= found.condensation_step <= 480
    assert 360 <= found.expansion_step <= 600


def records_of(heights):
    """Tables of matrices that take turns: role to the height of each matrix's bump."""
    rows = []
    matrices = [(role, h) for role, of_role in heights.items() for h in of_role]
    for i, step in enumerate(LOG_SPACED):
        for j, (role, height) in enumerate(matrices):
            if step < 10 or i % 2 == j % 2:
                value = np.exp(bump([step], height)[0])
                rows.append((step, f"{role}.{j}", role, value, 1 / value))
    columns = ["step", "matrix", "role", "mean_squared_cosine_over_null"]
    condensation = pd.DataFrame([row[:4] for row in rows], columns=columns)
    rank = pd.DataFrame([(*row[:3], row[4]) for row in rows],
                        columns=[*columns[:3], "stable_rank_over_null"])  # fmt: skip
    return {"condensation": condensation, "effective_rank": rank, "x": rank}


def test_roles_are_means_of_their_matrices_which_take_turns():
    tables = records_of({"query": [1.5, 1.5], "value": [0.0]})
    phases = phases_of(tables)
    of_roles, of_matrices = phases[:4], phases[4:]
    pd.testing.assert_frame_equal(of_roles, phases_of_roles(tables))
    assert set(of_roles["matrix"]) == {""}
    assert list(of_matrices["matrix"]) == ["query.0", "query.1"] * 2  # "value" has but one
    for row in phases.itertuples():
        assert math.isnan(row.condensation_step) == (row.role == "value")
        if row.role == "query":
            assert row.condensation_low <= 120 <= row.condensation_high
            assert row.expansion_step > row.condensation_step
    with pytest.raises(
        InputError, match="effective_rank, circuits or hidden_states; the run has none"
    ):
        phases_of({"token_loss": tables["x"]})
    with pytest.raises(InputError, match=r"min_change must be positive.*got 0"):
        phases_of(tables, 0)


def test_states_and_circuits_have_phases_beside_the_weights():
    tables = records_of({"query": [1.5]})
    states = records_of({"block": [1.5, 0.0]})["condensation"]
    heads = records_of({"qk": [1.5], "ov": [0.0]})["effective_rank"]
    beside = {"hidden_states": states.rename(columns={"matrix": "module"}).drop(columns="role"),
              "circuits": heads}  # fmt: skip
    alone = phases_of(tables)
    found = phases_of(tables | beside).set_index(["role", "matrix", "quantity"])
    pd.testing.assert_frame_equal(found.loc[alone["role"].unique()].reset_index(), alone)
    cos, rank = "mean_squared_cosine_over_null", "stable_rank_over_null"
    blocks = found.loc["hidden_states"].xs(cos, level="quantity")
    assert list(blocks.index) == ["", "block.0", "block.1"]
    assert list(blocks["condensation_step"].isna()) == [False, False, True]
    assert blocks["condensation_low"]["block.0"] <= 120 <= blocks["condensation_high"]["block.0"]
    assert found["condensation_low"]["qk", "", rank] <= 120
    assert math.isnan(found["condensation_step"]["ov", "", rank])


def test_in_words_the_strongest_come_first_and_those_that_do_the_same_together():
    def row(role, matrix, quantity, condensed, expanded=(nan, nan, nan), values=(1, nan, nan)):
        start, extreme, end = values
        return [role, matrix, f"{quantity}_over_null", start, *condensed, extreme, *expanded, end]

    names = ["role", "matrix", "quantity", *(field.name for field in fields(Phases))]
    cos, rank, none = "mean_squared_cosine", "stable_rank", (nan, nan, nan)
    rows = [
        row("value", "", cos, none),
        row("position", "", cos, (9, 8, 10), values=(0.7, 0.9, 0.9)),  # Still below random.
        row("query", "", cos, (610, 500, 700), values=(1, 5.21, 5.2)),
        row("query", "", rank, (400, 300, 500), values=(1, 0.5, 0.5)),  # It moved less.
        row("key", "", cos, (560, 450, 640), values=(1, 7.04, 7)),
        row("lm_head", "", cos, (1500, 1300, inf), values=(1, 23.1, 23.1)),
        row("mlp_down", "", rank, (300, 250, 350), values=(1, 0.3, 0.3)),
        row("mlp_down", "blocks.1.down", rank, (300, 250, 350), (720, 600, 800), (1, 0.27, 0.43)),
    ]
    assert phases_in_words(pd.DataFrame(rows, columns=names)) == [
        "still condensing: lm_head 23 (cos² ÷ random)",
        "condensed until step 560: key 7, query 5.2 (cos² ÷ random)",
        "condensed until step 300: mlp_down 0.3 (stable rank ÷ random)",
        "expanded again from step 720: layer1.mlp_down 0.27 → 0.43 (stable rank ÷ random)",
    ]
    many = [row(f"r{i}", "", cos, (9, 8, 10), values=(1, 20 - i, 1)) for i in range(7)]
    assert phases_in_words(pd.DataFrame(many, columns=names)) == [
        "condensed until step 9: r0 20, r1 19, r2 18, r3 17, r4 16 and 2 more (cos² ÷ random)"
    ]
    (still,) = phases_in_words(pd.DataFrame(rows[:2], columns=names))
    assert still.startswith("no phases: no curve moved")
    (few,) = phases_in_words(
        phases_of({"condensation": records_of({"a": [1]})["condensation"][:5]})
    )
    assert few == "no phases: too few steps were measured"
