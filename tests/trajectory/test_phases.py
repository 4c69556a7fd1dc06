"""Phases: on curves whose phases are known, with noise and without, and on tables."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from lit_gamma import InputError
from lit_gamma.callbacks import Schedule
from lit_gamma.trajectory.phase_finding import find_phases, phases_of_roles

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


def test_roles_are_means_of_their_matrices_which_take_turns():
    rows = []
    for i, step in enumerate(LOG_SPACED):
        for j, (matrix, role, height) in enumerate(
            [("a", "query", 1.5), ("b", "query", 1.5), ("c", "value", 0.0)]
        ):
            if step < 10 or i % 2 == j % 2:
                value = np.exp(bump([step], height)[0])
                rows.append((step, matrix, role, value, 1 / value))
    columns = ["step", "matrix", "role", "mean_squared_cosine_over_null"]
    condensation = pd.DataFrame([row[:4] for row in rows], columns=columns)
    rank = pd.DataFrame([(*row[:3], row[4]) for row in rows],
                        columns=[*columns[:3], "effective_rank_over_null"])  # fmt: skip
    table = phases_of_roles({"condensation": condensation, "effective_rank": rank, "x": rank})
    assert len(table) == 4
    for row in table.itertuples():
        assert math.isnan(row.condensation_step) == (row.role == "value")
        if row.role == "query":
            assert row.condensation_low <= 120 <= row.condensation_high
            assert row.expansion_step > row.condensation_step
    with pytest.raises(InputError, match="condensation or effective_rank; the run has none"):
        phases_of_roles({"token_loss": rank})
    with pytest.raises(InputError, match=r"min_change must be positive.*got 0"):
        phases_of_roles({"condensation": condensation}, 0)
