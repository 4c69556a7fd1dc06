"""The report of one run or several, whatever was recorded, as a user meets it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
from helpers.runs import ROOT, TINY, fit

from lit_gamma import InputError, trajectory
from lit_gamma.callbacks import RunSummary, WeightNorms
from lit_gamma.comparison import align, gather
from lit_gamma.comparison.alignment import aligned
from lit_gamma.comparison.numbers import compute
from lit_gamma.comparison.page import render


@pytest.fixture(scope="module")
def anchor(tmp_path_factory, command_line):
    """Two short runs of the anchor task, which record no probe, as they come from training."""
    root = tmp_path_factory.mktemp("anchor")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for gamma in ("0.5", "0.8"):
            command_line("fit", *TINY, "--trainer.max_steps=30", f"--model.gamma={gamma}",
                         "--trainer.callbacks+=AttentionSink",
                         f"--trainer.logger.init_args.version=g{gamma}",
                         f"--trainer.logger.init_args.save_dir={root}")  # fmt: skip
    return [str(root / "anchor" / version) for version in ("g0.5", "g0.8")]


def test_a_run_leaves_its_page_and_report_makes_the_same_again(anchor, command_line, capsys):
    path = Path(anchor[1], "report.html")
    at_the_end = path.read_text()
    command_line("report", anchor[1])
    assert capsys.readouterr().out == f"wrote {path}\n"
    assert path.read_text() == at_the_end
    assert "<h1>γ = 0.8, seed 1</h1>" in at_the_end
    assert "ProbeLoss" in at_the_end  # What to train with to see tokens.
    assert 'id="tokens"' not in at_the_end


def test_a_page_has_the_numbers_of_the_record(anchor, command_line, tmp_path):
    out = tmp_path / "both.html"
    command_line("compare", *anchor, f"--out={out}")
    page = out.read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"both.html"} | {
        f"both_{name}.csv" for name in ("runs", "phases", "weights", "curves")
    }
    curves = pd.read_csv(tmp_path / "both_curves.csv").set_index(["table", "quantity", "group"])
    weights = pd.read_csv(tmp_path / "both_weights.csv").set_index(["quantity", "role", "group"])
    for run_dir, group in zip(anchor, ("γ = 0.5", "γ = 0.8"), strict=True):
        tables = trajectory.load(run_dir)
        loss = curves.loc["token_loss", "mean", group].set_index("step")["value"]
        expected = tables["token_loss"].set_index("step")["mean"]
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        said = tables["anchor_reasoning"].iloc[-1]
        values = ", ".join(f"{n} {said[n]:.2f}" for n in ("composition", "symmetry", "other"))
        summary = json.loads(Path(run_dir, "summary.json").read_text())
        assert values in page
        assert f"30 steps in {summary['seconds']:.0f} s" in page
        sinks = tables["attention_sink"].groupby("step")["first_token_mass_over_null"].mean()
        drawn = curves.loc["attention_sink", "first_token_mass_over_null", group]
        np.testing.assert_allclose(drawn["value"], sinks, rtol=1e-5)
        assert set(drawn["n_items"]) == {2}  # Two layers with one head.
        key = tables["condensation"].query("role == 'key' and step == step.max()")
        drawn = weights.loc["mean_squared_cosine_over_null", "key", group].iloc[-1]
        assert drawn["value"] == pytest.approx(
            key["mean_squared_cosine_over_null"].mean(), rel=1e-5
        )
        last = weights.xs((group, "effective_rank_over_null"), level=("group", "quantity"))
        of_roles = last.groupby("role", sort=False)["value"].last()
        whole = of_roles.pop("all roles")
        assert whole == pytest.approx(np.exp(np.log(of_roles).mean()))


def test_runs_of_which_some_followed_no_tokens_or_others_are_shown_without(runs, anchor):
    for pair in ([runs["a"], anchor[0]], [runs["a"], runs["longer"]]):
        side_by_side = gather(pair)
        with pytest.raises(InputError) as reason:
            aligned(side_by_side)
        page = render(side_by_side, compute(side_by_side), str(reason.value))
        assert re.search(f"no part on tokens: .*{pair[-1]}", page)
        assert 'id="tokens"' not in page
        assert 'id="data"' not in page


def test_a_run_alone_shows_its_tokens(runs):
    alone = align([runs["a"]])
    numbers = compute(alone)
    page = render(alone, numbers)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    losses = trajectory.tokens(runs["a"]).astype({"loss": float}).groupby("step")["loss"].mean()
    assert data["full"] == pytest.approx(losses.iloc[0], rel=1e-3)
    whole = numbers.losses.query("`set` == '' and `class` == ''").set_index("step")["loss"]
    np.testing.assert_allclose(whole, losses, rtol=1e-5)
    assert f"<td>{losses.iloc[-1]:.3f}" in page
    assert "against" not in page.split("</header>")[0]


def test_what_stops_a_page_does_not_stop_training(tmp_path):
    class InTheWay(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            Path(trainer.log_dir, "report.html").mkdir(parents=True)

    with pytest.warns(UserWarning, match=r"report.html is left out \(InputError: .*directory"):
        fit(tmp_path, WeightNorms(), RunSummary(), InTheWay(), version=0, max_steps=2)
    fit(tmp_path, WeightNorms(), RunSummary(report=False), version=1, max_steps=2)
    assert (tmp_path / "version_1" / "summary.json").is_file()
    assert not (tmp_path / "version_1" / "report.html").exists()


class Tags(HTMLParser):
    """Holds that every element is closed by its own tag, in the right order, and ids are unique."""

    void = ("meta", "link", "input", "br", "wbr")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_pages_are_well_formed_and_their_links_lead_somewhere(runs, anchor):
    for dirs in ([anchor[0]], anchor, [runs["a"]], [runs["a"], runs["b"], runs["a2"]]):
        side_by_side = gather(dirs) if dirs[0] == anchor[0] else align(dirs)
        page = render(side_by_side, compute(side_by_side))
        assert not re.search(r"https?:|url\(|@import|\bsrc=", page)
        tags = Tags()
        tags.feed(page)
        assert tags.open == []
        assert len(set(tags.ids)) == len(tags.ids)
        assert {link.removeprefix("#") for link in tags.links} <= set(tags.ids)
        assert not re.search(r"\bnan\b|\binf\b", page.split("<script")[0])
