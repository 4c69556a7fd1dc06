"""The figure of a run shows the record, in panels for what there is."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from helpers.runs import fit
from PIL import Image

from lit_gamma import InputError, trajectory
from lit_gamma.callbacks import (
    Circuits,
    Condensation,
    EffectiveRank,
    HiddenStates,
    Schedule,
    TokenLoss,
    TrajectoryCallback,
    WeightNorms,
)


class Answers(TrajectoryCallback):
    def observe(self, trainer, pl_module):
        share = self.run.step / 12
        return {"right": torch.tensor([share]), "wrong": torch.tensor([1 - share])}


def curves(ax):
    """Steps and values of the lines that have a name."""
    named = [line for line in ax.lines if not line.get_label().startswith("_")]
    return {
        line.get_label(): ((10 ** line.get_xdata() - 1).round().tolist(), line.get_ydata())
        for line in named
    }


def test_panels_show_what_was_recorded_and_the_phases(tmp_path):
    every = Schedule(every=1)
    callbacks = [Condensation(every, None), EffectiveRank(every, None), WeightNorms(), TokenLoss()]
    run = fit(tmp_path, *callbacks, Answers(), max_steps=12).log_dir
    figure = trajectory.plot(run, "a title")
    panels = {ax.get_title(loc="left"): curves(ax) for ax in figure.axes}
    assert list(panels) == [
        "training loss", "answers", "cos² between neurons ÷ random", "effective rank ÷ random",
        "stable rank ÷ random", "update ÷ weights",
    ]  # fmt: skip
    assert figure.get_suptitle() == "a title"
    assert Image.open(BytesIO(figure._repr_png_())).width == 572  # as a notebook shows it
    tables = trajectory.load(run)
    assert panels["answers"]["right"][0] == list(range(13))
    np.testing.assert_allclose(panels["answers"]["wrong"][1], 1 - np.arange(13) / 12, rtol=1e-6)
    steps, values = panels["training loss"]["mean"]
    assert steps == list(range(12))
    np.testing.assert_array_equal(values, tables["token_loss"]["mean"])
    by_step = tables["effective_rank"].query("role == 'query'").groupby("step")
    steps, values = panels["stable rank ÷ random"]["query"]
    assert steps == list(range(13))
    np.testing.assert_allclose(values, by_step["stable_rank_over_null"].mean(), rtol=1e-6)


def test_states_and_circuits_have_lines_beside_those_of_the_weights(tmp_path):
    every = Schedule(every=1)
    callbacks = [WeightNorms(), EffectiveRank(every, None), HiddenStates(every), Circuits(every)]
    run = fit(tmp_path, *callbacks, max_steps=12).log_dir
    figure = trajectory.plot(run)
    panels = {ax.get_title(loc="left"): curves(ax) for ax in figure.axes}
    beside = {title: {"hidden_states", "qk", "ov"} & set(panel) for title, panel in panels.items()}
    assert beside == {
        "cos² between neurons ÷ random": {"hidden_states"},
        "effective rank ÷ random": {"hidden_states", "qk", "ov"},
        "stable rank ÷ random": {"qk", "ov"},
        "update ÷ weights": set(),
    }
    tables = trajectory.load(run)
    _, values = panels["cos² between neurons ÷ random"]["hidden_states"]
    means = tables["hidden_states"].groupby("step")["mean_squared_cosine_over_null"].mean()
    np.testing.assert_allclose(values, means, rtol=1e-6)
    _, values = panels["stable rank ÷ random"]["ov"]
    means = tables["circuits"].query("role == 'ov'").groupby("step")["stable_rank_over_null"].mean()
    np.testing.assert_allclose(values, means, rtol=1e-6)
    (legend,) = figure.legends
    assert len({line.get_color() for line in legend.get_lines()}) == len(legend.get_texts()) == 12
    assert {"hidden_states", "qk", "ov"} <= set(trajectory.phases(run)["role"])


def test_a_run_without_weights_has_its_loss_alone_and_an_empty_one_is_refused(tmp_path):
    run = fit(tmp_path / "a", TokenLoss(), max_steps=3).log_dir
    assert [ax.get_title(loc="left") for ax in trajectory.plot(run).axes] == ["training loss"]
    with pytest.raises(InputError, match="holds no trajectory"):
        trajectory.plot(tmp_path)


def test_a_long_record_is_thinned_to_whole_steps(tmp_path):
    run = fit(tmp_path, WeightNorms(), max_steps=60).log_dir
    whole = trajectory.load(run)["weight_norms"]
    thinned = trajectory.load(run, per_decade=10)["weight_norms"]
    kept = thinned["step"].unique()
    bins = np.floor(10 * np.log10(1 + np.arange(61)))
    assert list(kept) == [int(np.flatnonzero(bins == b)[0]) for b in np.unique(bins)]
    assert thinned.equals(whole[whole["step"].isin(kept)].reset_index(drop=True))
