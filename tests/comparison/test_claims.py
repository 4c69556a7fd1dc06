"""What a claim's tests say, of tables whose answer is known; nothing is trained here."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import ROOT
from scipy import stats

from lit_gamma import InputError, trajectory
from lit_gamma.comparison import align
from lit_gamma.comparison import claim_kinds as kinds
from lit_gamma.comparison.claim_cells import by_seed, selected
from lit_gamma.comparison.claim_file import read_claim
from lit_gamma.comparison.claim_page import write_claim
from lit_gamma.comparison.claim_tokens import _at, context_gains, token_view
from lit_gamma.comparison.claim_verdict import judge, refuse_absent_settings
from lit_gamma.comparison.small_samples import (
    mean_interval,
    seeds_needed,
    share_difference,
    share_interval,
    student_quantile,
)
from lit_gamma.comparison.sweep_runs import GAMMA, RATE, sweep_of
from lit_gamma.comparison.sweep_table import row, table_of

LOSS, UNSEEN, DECAY = "val/seen/loss", "val/unseen/accuracy", "model.optimizer.weight_decay"


def swept(keys, values, folder="s", statuses=None):
    """A sweep of ``{(cell..., seed): metrics and more}``."""
    rows = []
    for (*cell, seed), said in values.items():
        setting = dict(zip(keys, cell, strict=True))
        status = (statuses or {}).get((*cell, seed), "finished")
        phases = {k: v for k, v in said.items() if k == "phases"}
        metrics = {k: v for k, v in said.items() if k != "phases"}
        summary = {"status": status, "steps": 9, "metrics": metrics, **phases}
        ended = status == "finished" or status.startswith("diverged")
        name = f"{'-'.join(map(str, cell))}-{seed}"
        rows.append(row(name, setting, seed, None if status == "missing" else summary, ended))
    return sweep_of(folder, table_of(rows))


def test_intervals_of_few_seeds_are_those_of_the_textbooks():
    for degrees in (1, 2, 4, 9, 30):
        assert student_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)
    x = np.array([0.3, 0.1, 0.4, 0.2, 0.25])
    expected = stats.t.interval(0.95, 4, x.mean(), stats.sem(x))
    np.testing.assert_allclose(mean_interval(x)[1:], expected, rtol=1e-4)
    for found, of in ((0, 5), (3, 5), (5, 5), (12, 45)):
        wilson = stats.binomtest(found, of).proportion_ci(method="wilson")
        np.testing.assert_allclose(share_interval(found, of)[1:], wilson, atol=1e-9)
    # Newcombe (1998), table II: 56/70 against 48/80 by method 10.
    np.testing.assert_allclose(
        share_difference((56, 70), (48, 80)), (0.2, 0.0524, 0.3339), atol=1e-4
    )
    n = seeds_needed([0.3, -0.1, 0.2])
    spread, mean = np.std([0.3, -0.1, 0.2], ddof=1), 0.4 / 3
    reach = [stats.t.ppf(0.975, k - 1) * spread / math.sqrt(k) for k in (n - 1, n)]
    assert reach[0] >= mean > reach[1]
    assert seeds_needed([1.0, -1.0, 0.001]) is None


def test_better_is_paired_over_seeds_at_the_best_of_what_is_left_open():
    noise = dict(zip((1, 2, 3), (0.0, 0.5, -0.4), strict=True))  # Of a seed, in all its cells.
    gain = {1: 0.10, 2: 0.12, 3: 0.09}
    values = {}
    for gamma, rate, seed in product((0.5, 0.8), (1e-3, 1e-2), noise):
        worse = 0.3 * (rate == 1e-2) - gain[seed] * (gamma == 0.8)
        values[gamma, rate, seed] = {LOSS: 2 + noise[seed] + worse}
    sweeps = {"s": swept([GAMMA, RATE], values)}
    where = {"where": {GAMMA: 0.8}, "than": {GAMMA: 0.5}}
    found = kinds.better(sweeps, "s", LOSS, **where)
    assert found.verdict == "yes"
    np.testing.assert_allclose(found.span, mean_interval(list(gain.values())), rtol=1e-9)
    assert kinds.better(sweeps, "s", LOSS, {GAMMA: 0.5}, {GAMMA: 0.8}).verdict == "no"
    assert kinds.better(sweeps, "s", LOSS, **where, by=0.1).verdict == "undecided"
    assert kinds.better(sweeps, "s", LOSS, **where, by=0.2).verdict == "no"
    assert kinds.better(sweeps, "s", LOSS, {GAMMA: 0.5}, {GAMMA: 0.8}, by=-0.2).verdict == "yes"
    same = kinds.better(sweeps, "s", LOSS, {GAMMA: 0.8}, {GAMMA: 0.8})
    assert same.verdict == "undecided"  # As where no run has learnt anything.
    assert "the same in each seed" in same.note
    one = {"s": swept([GAMMA, RATE], {k: v for k, v in values.items() if k[2] < 2})}
    short = kinds.better(one, "s", LOSS, {GAMMA: 0.8, RATE: 1e-3}, {GAMMA: 0.5, RATE: 1e-3})
    assert (short.verdict, short.note) == ("undecided", "1 seeds in both; takes 2 at least")
    failed = {(0.8, 1e-3, 2): "missing", (0.8, 1e-2, 2): "diverged at step 3"}
    gone = {"s": swept([GAMMA, RATE], values, statuses=failed)}
    diverged = kinds.better(gone, "s", LOSS, {GAMMA: 0.8, RATE: 1e-2}, {GAMMA: 0.5, RATE: 1e-2})
    assert diverged.verdict == "yes"  # Its last loss was measured.
    fixed = {GAMMA: 0.8, RATE: 1e-3}, {GAMMA: 0.5, RATE: 1e-3}
    assert kinds.better(gone, "s", LOSS, *fixed).note.startswith("2 seeds")


def test_a_gain_is_compared_with_another_in_the_same_unit():
    values = {
        (gamma, seed): {
            "val/a/loss": (1.0 if gamma == 0.8 else 1.5) + 0.01 * seed,
            "val/b/loss": (10.0 if gamma == 0.8 else 11.0) - 0.1 * seed,
            UNSEEN: 0.5,
        }
        for gamma, seed in product((0.5, 0.8), (1, 2, 3))
    }
    sweeps = {"s": swept([GAMMA], values)}
    setting = {"sweep": "s", "where": {GAMMA: 0.8}, "than": {GAMMA: 0.5}}
    one, other = ({**setting, "measure": f"val/{name}/loss"} for name in "ab")
    found = kinds.gains_more(sweeps, one, other)
    expected = [
        math.log((1.5 + 0.01 * s) / (1 + 0.01 * s)) - math.log((11 - 0.1 * s) / (10 - 0.1 * s))
        for s in (1, 2, 3)
    ]
    assert found.verdict == "yes"
    np.testing.assert_allclose(found.span, mean_interval(expected), rtol=1e-9)
    assert kinds.gains_more(sweeps, other, one).verdict == "no"
    with pytest.raises(InputError, match="no unit in common"):
        kinds.gains_more(sweeps, one, {**setting, "measure": UNSEEN})


def test_a_critical_gamma_is_yes_no_or_undecided():
    def along(curve, n=4):
        values = {(g, s): {UNSEEN: v + 0.01 * s} for g, v in curve.items() for s in range(n)}
        return {"s": swept([GAMMA], values)}

    rising = along({0.3: 0, 0.5: 0.1, 0.7: 0.9, 0.9: 1})
    found = kinds.critical(rising, "s", UNSEEN)
    assert found.verdict == "yes"
    assert found.span[0] == pytest.approx(0.5 + 0.2 * 0.4 / 0.8)
    assert kinds.critical_stays(rising, "s", UNSEEN).verdict == "yes"
    peak = along({0.3: 0, 0.5: 0.1, 0.7: 0.9, 0.9: 0})
    assert kinds.critical_stays(peak, "s", UNSEEN).verdict == "no"
    falling = along({0.3: 1, 0.5: 0.9, 0.7: 0.1})
    assert kinds.critical(falling, "s", UNSEEN).verdict == "no"
    flat = along({0.3: 0.5, 0.5: 0.5, 0.7: 0.5})
    assert kinds.critical(flat, "s", UNSEEN).verdict == "undecided"
    few = kinds.critical(along({0.3: 0, 0.7: 1}, n=3), "s", UNSEEN)
    assert few.verdict == "undecided"
    assert "takes 2 γ with 4 seeds" in few.note
    assert kinds.critical(along({0.3: 0, 0.7: 1}), "s", UNSEEN).verdict == "yes"


def test_phases_are_shares_of_the_seeds_in_which_most_runs_show_them():
    def run(expands):
        curve = {"start": None if expands is None else 1.0, "expansion_step": 40.0}
        if not expands:
            curve["expansion_step"] = None
        return {LOSS: 1.0, "phases": {"query": {"cos": curve}}}

    shows = {0.8: [1, 1, 1, 1, 1, 1, 1, 0, None], 0.5: [0, 0, 0, 0, 0, 0, 1, 0, None]}
    values = {
        (g, r, s): run(v if r < 3 else 1 - (v or 0))  # Two of three runs decide.
        for g, of in shows.items()
        for s, v in enumerate(of)
        for r in (1, 2, 3)
        if v is not None or r < 3
    }
    sweeps = {"s": swept([GAMMA, RATE], values)}
    asked = {"role": "query", "quantity": "cos", "phase": "expansion", "where": {GAMMA: 0.8}}
    found = kinds.phases(sweeps, "s", **asked)
    assert found.verdict == "yes"
    assert found.note == "7 of 8 seeds"
    np.testing.assert_allclose(found.span, share_interval(7, 8))
    assert kinds.phases(sweeps, "s", **asked, above=0.9).verdict == "undecided"
    apart = kinds.phases(sweeps, "s", **asked, than={GAMMA: 0.5})
    np.testing.assert_allclose(apart.span, share_difference((7, 8), (1, 8)))
    assert apart.verdict == "yes"
    with pytest.raises(InputError, match="no run in s measured key, cos: expansion"):
        kinds.phases(sweeps, "s", **{**asked, "role": "key"})


def test_settings_are_told_as_the_grid_has_them():
    cells = {
        (g, w, s): {LOSS: float(s)} for g, w, s in product((0.5, None), (None, (0.0, 0.25)), (1, 2))
    }
    sweep = swept([GAMMA, "window"], cells)
    found = selected(sweep, {GAMMA: "null", "window": "[0,0.25]"}).table
    assert list(found["seed"]) == [1, 2]
    assert found[GAMMA].isna().all()
    both = selected(sweep, {GAMMA: [0.5, 0.9], "window": "null"}).table
    assert set(both[GAMMA]) == {0.5}
    assert list(by_seed(sweep, {GAMMA: 0.5, "window": "null"}, LOSS)) == [1, 2]
    with pytest.raises(InputError, match=r"the grid of s has no model.gamma 0\.7"):
        selected(sweep, {GAMMA: 0.7})
    with pytest.raises(InputError, match="the grid of s has no depth"):
        selected(sweep, {"depth": 2})


def test_losses_are_compared_where_both_have_come_equally_far():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    over_all, on_class = np.array([4.0, 3.0, 2.0, 1.0]), np.array([8.0, 7.0, 3.0, 2.0])
    assert _at(x, over_all, on_class, 1.5) == pytest.approx(2.5)
    assert _at(x, over_all, on_class, 4.5) == 8.0
    assert _at(x, over_all, on_class, 1.0) == 2.0


@pytest.mark.slow
def test_tokens_and_last_records_are_those_of_the_runs(runs):
    folder = str(Path(runs["a"]).parent)
    rows = [
        row(
            name,
            {GAMMA: gamma},
            1,
            {"status": "finished", "steps": 9, "metrics": {LOSS: 1.0}},
            True,
        )
        for name, gamma in (("a", 0.5), ("b", 1.0))
    ]
    sweep = sweep_of(folder, table_of(rows))
    here, there = (selected(sweep, {GAMMA: gamma}) for gamma in (1.0, 0.5))
    tokens = align([runs["a"], runs["b"]]).tokens
    name = tokens["class"].iloc[0]
    inside = (tokens["class"] == name).to_numpy()
    _, before, _ = trajectory.probe(runs["a"])
    _, after, _ = trajectory.probe(runs["b"])
    fall = before[-1].astype(float) - after[-1].astype(float)
    expected = fall[inside].mean() - max(fall.mean(), 0)
    gains = context_gains(here, there, name, "class", equal_loss=False)
    assert dict(gains) == {1: pytest.approx(expected, abs=1e-6)}
    assert not inside.all()
    with pytest.raises(InputError, match="no token of the probe is odd"):
        context_gains(here, there, "odd", "class", equal_loss=True)
    with pytest.raises(InputError, match="both settings are the same"):
        context_gains(here, here, name, "class", equal_loss=True)

    view = token_view(here, there, name, "class")
    assert [chart.keys for chart in view.charts] == [((0, "γ 0.5"), (1, "γ 1"))] * 2
    assert f"{inside.sum():,} tokens" in view.charts[0].title
    last = [losses[-1].astype(float) for losses in (before, after)]
    np.testing.assert_allclose(
        view.cells["value"],
        [*(of[inside].mean() for of in last), *(of.mean() for of in last)],
        atol=1e-6,
    )

    measure = "effective_rank/effective_rank_over_null"
    table = trajectory.load(runs["b"])["effective_rank"]
    last = table[table["step"] == table["step"].max()]["effective_rank_over_null"].mean()
    assert by_seed(sweep, {GAMMA: 1.0}, measure)[1] == pytest.approx(last)
    with pytest.raises(InputError, match="measured effective_rank/none"):
        by_seed(sweep, {GAMMA: 1.0}, "effective_rank/none")


def test_a_verdict_names_what_is_undecided_and_what_is_missing(tmp_path):
    claim = read_claim(ROOT / "configs" / "claims" / "C4.yaml")
    gammas, rates = (0.5, 0.6, 0.7, 0.8, 0.9), (1e-3, 2e-3)
    values = {
        (g, r, s): {UNSEEN: float(g > 0.65) + 0.01 * s, LOSS: r + g}
        for g, r, s in product(gammas, rates, (1, 2, 3))
    }
    gone = {(0.9, r, s): "missing" for r in rates for s in (1, 2, 3)}
    cut = {"anchor": swept([GAMMA, RATE], values, statuses=gone)}
    without = kinds.critical_stays(cut, "anchor", UNSEEN)
    assert (without.verdict, without.note) == ("undecided", "no run at γ 0.9 has ended")
    missing = {(0.9, 2e-3, s): "missing" for s in (1, 2, 3)}
    anchor = swept([GAMMA, RATE], values, statuses=missing)
    none = dict.fromkeys(product(gammas, (1,)), "missing")
    other = swept([GAMMA], {key: {} for key in none}, statuses=none)
    sweeps = {"anchor": anchor, "anchor_two_held_out": other}
    refuse_absent_settings(claim, sweeps)
    judged = judge(claim, "cpu", sweeps)
    assert [of.verdict for of in judged.outcomes] == ["yes", "undecided", "yes"]
    assert judged.verdict == "held in part"
    assert judged.absent == "of 35 runs 8 missing"
    written = write_claim(judged, tmp_path / "C4", "the command")
    assert [path.name for path in written] == ["claim.html", "claim.csv", "claim.json", "claim.svg"]
    page = (tmp_path / "C4" / "claim.html").read_text()
    assert "γ 0.9, lr 0.002: no run that ended" in page  # Missing, never zero.
    assert "incomplete: of 35 runs 8 missing" in page
    said = json.loads((tmp_path / "C4" / "claim.json").read_text())
    assert said["sweeps"]["anchor"]["ended"] == 27
    assert said["parts"][1]["value"] == "nan"
    with pytest.raises(InputError, match="no run of claim C4, preset cpu, has finished"):
        judge(claim, "cpu", {"anchor": other, "anchor_two_held_out": other})


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "claims").glob("*.yaml")), ids=str)
def test_the_claims_that_come_with_the_package_can_be_read(path):
    claim = read_claim(path)
    assert list(claim.presets) == ["smoke", "cpu", "gpu"]
    assert all(part.sweeps for part in claim.parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("kind: critical\n", "kind: crtical\n"), "unknown kind 'crtical'; known: critical, "),
        (("    measure: val/unseen/accuracy\n", ""), "missing a required argument: 'measure'"),
        (("seeds: 5", "seeds: many"), "cannot be read: invalid literal for int"),
        (("parts:", "prts:"), "cannot be read: no 'parts'"),
        (("sweep: anchor\n", "sweep: ancor\n"), "preset smoke has no sweep 'ancor'"),
        (("claim: ", "claim: [: "), "is not valid YAML"),
    ],
)
def test_a_claim_that_cannot_be_read_is_refused_in_one_line(tmp_path, change, message):
    text = (ROOT / "configs" / "claims" / "C4.yaml").read_text()
    path = tmp_path / "C4.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(InputError) as refused:
        read_claim(path)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
