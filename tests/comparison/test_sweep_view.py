"""What a sweep says, from tables whose answer is known; nothing is trained here."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lit_gamma import InputError
from lit_gamma.comparison.best_rate import at_best_rate
from lit_gamma.comparison.critical import critical, flatness, window
from lit_gamma.comparison.sweep_runs import GAMMA, RATE, cells, load_sweep
from lit_gamma.comparison.sweep_table import row, runs_of, summary_of, write_table
from lit_gamma.comparison.sweep_view import BEST, views

UNSEEN, LOSS = "val/unseen/accuracy", "val/seen/loss"


def swept(folder, values, statuses=None):
    """A sweep of ``{(setting, seed): metrics}``, read back."""
    rows = []
    for (setting, seed), metrics in values.items():
        status = (statuses or {}).get((setting, seed), "finished")
        summary = {"status": status, "steps": 9, "metrics": metrics}
        ended = status == "finished" or status.startswith("diverged")
        said = None if status == "missing" else summary
        rows.append(row(f"{setting}-{seed}", dict(setting), seed, said, ended))
    write_table(folder, rows)
    return load_sweep(folder)


def over_gamma(folder, curve, measure=UNSEEN):
    """A curve over γ, a list of seeds' values at each."""
    values = {
        (((GAMMA, gamma),), seed): {measure: value}
        for gamma, of in curve.items()
        for seed, value in enumerate(of)
    }
    sweep = swept(folder, values)
    return cells(sweep.ended, sweep.table[sweep.keys], measure)


STEP = {0.3: [0, 0.02, 0.01], 0.5: [0.1, 0.1, 0.1], 0.7: [0.9, 0.9, 0.9], 0.9: [1, 0.98, 1.02]}


def test_a_critical_gamma_is_where_the_mean_is_half_way(tmp_path):
    line = over_gamma(tmp_path, STEP)
    np.testing.assert_allclose(line.value, [0.01, 0.1, 0.9, 1.0])
    found = critical(line, lower_is_better=False)
    assert found.best == 0.9
    assert found.threshold == pytest.approx(0.505)
    expected = 0.5 + 0.2 * (0.505 - 0.1) / 0.8
    value, low, high = found.lower
    assert value == pytest.approx(expected)
    assert expected - 0.01 < low < value < high < expected + 0.01
    assert found.between[0] == (0.5, 0.7)
    assert found.upper[0] == math.inf  # The measure stays up to the end of the grid.


def test_a_window_has_two_ends_and_a_loss_is_turned_over(tmp_path):
    up = over_gamma(tmp_path, {**STEP, 1.1: [0.1, 0.12, 0.11]})
    down = over_gamma(
        tmp_path, {g: [1 - v for v in of] for g, of in [*STEP.items(), (1.1, [0.1, 0.12, 0.11])]},
        LOSS,
    )  # fmt: skip
    found, mirrored = critical(up, False), critical(down, True)
    assert found.between == ((0.5, 0.7), (0.9, 1.1))
    assert 0.9 < found.upper[1] <= found.upper[0] <= found.upper[2] < 1.1
    np.testing.assert_allclose(mirrored.lower, found.lower)
    np.testing.assert_allclose(mirrored.upper, found.upper)
    strict = window(up, False, tolerance=0.05)
    assert strict.lower[0] == pytest.approx(0.7 + 0.2 * 0.05 / 0.1)


def test_a_curve_within_its_noise_has_no_critical_gamma(tmp_path):
    flat = over_gamma(tmp_path, {0.3: [0.1, 0.9], 0.5: [0.8, 0.2], 0.7: [0.5, 0.4]})
    assert "flat within the seeds' noise" in critical(flat, False)
    alone = over_gamma(tmp_path, {0.3: [0.1], 0.5: [0.9], 0.7: [1.0]})
    assert "flat" in critical(alone, False)  # One seed each says nothing of the noise.
    assert np.isnan(alone.low).all()


def test_flatness_is_rare_by_chance_at_the_rate_it_states():
    generator = np.random.default_rng(1)
    p = [flatness(list(generator.normal(size=(4, 3)))) for _ in range(200)]
    assert 0.01 < np.mean(np.array(p) < 0.05) < 0.1


def test_a_diverged_run_is_as_bad_as_can_be_and_never_the_best(tmp_path):
    at = [((GAMMA, g),) for g in (0.1, 0.5, 0.7, 0.9)]
    losses = dict(zip(at, (0.0, 1.0, 2.0, 2.1), strict=True))
    values = {(a, s): {LOSS: loss + s / 99} for a, loss in losses.items() for s in range(3)}
    values[at[0], 0] = {LOSS: "nan"}
    sweep = swept(tmp_path, values, {(at[0], 0): "diverged at step 4"})
    of = cells(sweep.ended, sweep.table[sweep.keys], LOSS)
    assert of.value[0] == math.inf
    assert window(of, True, tolerance=None).best == 0.5


def rates(values):
    """Runs of γ × rate: ``{(γ, rate, seed): metrics}``."""
    return {(((GAMMA, g), (RATE, r)), s): m for (g, r, s), m in values.items()}


def test_the_best_rate_is_chosen_by_what_is_not_reported(tmp_path):
    values = {
        (0.5, 1.0, 1): {LOSS: 0.1, UNSEEN: 0.2, "val/unseen/loss": 0.0},
        (0.5, 2.0, 1): {LOSS: 0.3, UNSEEN: 0.9, "val/unseen/loss": 9.0},
        (0.5, 1.0, 2): {LOSS: 0.4, UNSEEN: 0.1, "val/unseen/loss": 0.0},
        (0.5, 2.0, 2): {LOSS: 0.2, UNSEEN: 0.8, "val/unseen/loss": 9.0},
    }
    sweep = swept(tmp_path, rates(values))
    chosen, rule = at_best_rate(sweep, UNSEEN)
    assert list(chosen[RATE]) == [1.0, 2.0]  # Each seed by its own loss on seen pairs.
    assert rule == "the lowest val/seen/loss in the same seed"
    chosen, _ = at_best_rate(sweep, LOSS, by=LOSS)
    assert list(chosen[RATE]) == [2.0, 1.0]  # Each seed by the other one.

    one_set = {key: {LOSS: m[LOSS]} for key, m in values.items()}
    chosen, rule = at_best_rate(swept(tmp_path, rates(one_set)), LOSS)
    assert rule == "the lowest val/seen/loss over the other seeds"
    one_seed = {key: m for key, m in one_set.items() if key[2] == 1}
    with pytest.raises(InputError, match="no other validation set, and no second seed"):
        at_best_rate(swept(tmp_path, rates(one_seed)), LOSS)
    no_loss = {key: {UNSEEN: m[UNSEEN]} for key, m in values.items()}
    with pytest.raises(InputError, match="unseen/accuracy is the only measure"):
        at_best_rate(swept(tmp_path, rates(no_loss)), UNSEEN)


def test_both_views_are_shown_and_a_cell_without_runs_is_missing(tmp_path):
    values = rates(
        {
            (g, r, s): {LOSS: 1 - r / 9, UNSEEN: min(1, g * r) + s / 99}
            for g in (0.3, 0.5, 0.7)
            for r in (1.0, 2.0)
            for s in (1, 2, 3)
        }
    )
    gone = {key: "missing" for key in values if key[0] == ((GAMMA, 0.5), (RATE, 2.0))}
    sweep = swept(tmp_path, values, gone)
    assert sum(map(len, sweep.absent.values())) == 3
    view = next(v for v in views(sweep) if v.measure == UNSEEN)
    titles = [(chart.title, chart.note) for chart in view.charts]
    assert titles == [
        ("γ × lr", ""), ("over γ", "each learning rate"), ("over γ", "the best learning rate"),
    ]  # fmt: skip
    assert "γ 0.5, lr 2: no run that ended" in view.charts[0].svg
    assert view.charts[0].svg.count('class="missing"') == 1
    assert ">0.62<" in view.charts[0].svg  # γ 0.3 at rate 2: 0.6, and 2 / 99 for the seeds.
    table = view.cells.set_index(["view", GAMMA])
    missing = view.cells.query(f"`{GAMMA}` == 0.5 and `{RATE}` == 2")
    assert missing["value"].isna().all()
    assert list(missing["n_runs"]) == [0]
    # At the best rate: 2, which has the lower loss, and 1 where 2 is missing.
    best = [table.loc[(BEST, g), "value"] for g in (0.3, 0.5, 0.7)]
    np.testing.assert_allclose(best, np.array([0.6, 0.5, 1.0]) + 2 / 99)


def test_a_sweep_without_a_finished_run_or_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is no sweep: it has no sweep\.arrow"):
        load_sweep(tmp_path)
    at = ((GAMMA, 0.5),)
    with pytest.raises(InputError, match=r"has finished \(1 missing\)"):
        swept(tmp_path, {(at, 1): {}}, {(at, 1): "missing"})
    table = tmp_path / "sweep.arrow"
    table.write_bytes(table.read_bytes()[:-40])
    for read in (load_sweep, runs_of):
        with pytest.raises(InputError, match=r"sweep\.arrow is damaged; the sweep's own command"):
            read(str(tmp_path))


@pytest.mark.parametrize(
    "key", ["status", "seed", "steps", "seconds", "metrics", "measured_at", "overhead", "phases"]
)
def test_a_summary_whose_values_are_of_another_kind_is_named_as_damaged(tmp_path, key):
    whole = {
        "status": "finished", "seed": None, "steps": 3, "seconds": 2, "metrics": {},
        "measured_at": None, "overhead": None, "in_words": [],
    }  # fmt: skip
    file = tmp_path / "summary.json"
    file.write_text(json.dumps(whole))
    assert summary_of(tmp_path) == whole
    file.write_text(json.dumps({**whole, key: ["x"]}))
    with pytest.raises(InputError, match=rf"summary\.json is damaged; .*{key} is \['x'\]"):
        summary_of(tmp_path)
