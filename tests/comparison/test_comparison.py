"""Comparing runs: by hand, on sources whose answer is known, and as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lit_gamma import InputError, trajectory
from lit_gamma.comparison import Comparison, Probe, Run, align, curves, learnt, loss_differences
from lit_gamma.comparison.findings import main_findings, verdict
from lit_gamma.comparison.numbers import compute
from lit_gamma.comparison.page import render
from lit_gamma.comparison.probe_text import shade, visible
from lit_gamma.comparison.settings import flat
from lit_gamma.comparison.svg import Line, interval_bar, panel


def comparison(losses, sets=None, blocks=None, classes=None, groups=None, text="x") -> Comparison:
    """A comparison of losses (n_runs, n_steps, n_tokens) without runs behind it."""
    losses = np.asarray(losses, np.float32)
    n_runs, n_steps, n_tokens = losses.shape
    tokens = pd.DataFrame(
        {"token": range(n_tokens), "set": sets if sets is not None else "s",
         "block": blocks if blocks is not None else range(n_tokens), "position": 0, "token_id": 7,
         "text": text, "unigram": 1.0, "bigram": 1.0, "trigram": np.nan,
         "class": classes if classes is not None else "local"}
    )  # fmt: skip
    tokens["class_by_mean"] = tokens["class"]
    tokens.attrs["probe"] = "0" * 64
    steps = np.arange(n_steps)
    probes = [Probe(steps, of_run, tokens) for of_run in losses]
    made = [Run(f"run{i}", {}, None, i, {}, probe) for i, probe in enumerate(probes)]
    groups = groups or {f"g{i}": [i] for i in range(n_runs)}
    return Comparison(made, groups, steps, losses, tokens)


# ---- numbers ----


def test_the_tables_are_those_of_the_records_by_hand(runs, command_line, tmp_path, capsys):
    out = tmp_path / "new" / "report.html"
    command_line("compare", runs["a"], runs["b"], runs["a2"], f"--out={out}")
    names = ("runs", "losses", "differences", "learnt", "tokens", "phases", "weights", "curves")
    files = {name: out.with_name(f"report_{name}.csv") for name in names}
    assert set(out.parent.iterdir()) == {out, *files.values()}
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == [
        str(path) for path in (out, *files.values())
    ]
    tables = {
        name: pd.read_csv(file, keep_default_na=False, na_values=["nan"])
        for name, file in files.items()
    }
    tokens = tables["tokens"].set_index("token")
    records = {name: trajectory.tokens(runs[name]) for name in ("a", "a2", "b")}
    means = {}
    for name, record in records.items():
        record["class"] = record["token"].map(tokens["class"])
        steps = record.astype({"loss": float})
        for keys in ([], ["set"], ["class"], ["set", "class"]):
            by_hand = steps.groupby([*keys, "step"], observed=True)["loss"].mean()
            for key, loss in by_hand.items():
                key = key if isinstance(key, tuple) else (key,)
                named = dict(zip([*keys, "step"], key, strict=True))
                part = named.get("set", ""), named.get("class", ""), named["step"]
                means[(name, *part)] = loss
    found = tables["losses"].set_index(["run", "set", "class", "step"])["loss"]
    steps = sorted(records["a"]["step"].unique())
    assert sorted(tables["losses"]["step"].unique()) == steps
    assert steps[-1] == 9  # the trained weights
    for (name, *part), loss in means.items():
        assert found[(runs[name], *part)] == pytest.approx(loss, rel=1e-5)
    last = trajectory.load(runs["b"])["probe_tokens"]["full_context"].mean()
    assert found[runs["b"], "", "", 9] == pytest.approx(last, rel=1e-4)  # from half precision
    changes = tables["differences"].query("classes == 'best'")
    assert list(changes["group"].unique()) == ["γ = 0.5", "γ = 1.0"]
    for row in changes.query("step < 9").to_dict("records"):
        part = row["set"], row["class"], row["step"]
        groups = {
            "γ = 0.5": (means[("a", *part)] + means[("a2", *part)]) / 2,
            "γ = 1.0": means[("b", *part)],
        }
        assert float(row["loss"]) == pytest.approx(groups[row["group"]], rel=1e-5)
        change = groups[row["group"]] - groups["γ = 0.5"]
        assert float(row["difference"]) == pytest.approx(change, abs=1e-5)
    total = changes.query("step == 9 and group == 'γ = 1.0' and `class` == ''").set_index("set")
    assert total["contribution"][["plain", "tags"]].sum() == pytest.approx(
        total["contribution"][""]
    )
    of_runs = [trajectory.phases(runs[n]).query("matrix == ''") for n in ("a", "b", "a2")]
    by_hand = pd.concat(of_runs, ignore_index=True)
    assert list(tables["phases"]["role"]) == list(by_hand["role"])


def test_intervals_are_those_of_a_plain_bootstrap():
    generator = np.random.default_rng(1)
    blocks = np.repeat(range(12), 5)
    losses = generator.gamma(2, 1, (5, 1, 60)) + generator.normal(size=12)[blocks]
    groups = {"a": [0, 1], "b": [2, 3, 4]}
    sets = np.where(blocks < 6, "s", "t")
    made = comparison(losses, sets, blocks, groups=groups)
    table = loss_differences(made, curves(made)).query(
        "`set` == '' and `class` == '' and group == 'b'"
    )
    expected = []
    for _ in range(4000):
        drawn = np.concatenate([generator.choice(range(6), 5), generator.choice(range(6, 12), 5)])
        inside = np.concatenate([np.flatnonzero(blocks == b) for b in drawn])
        a, b = (generator.choice(of, len(of) - 1) for of in groups.values())
        expected.append(losses[b, 0][:, inside].mean() - losses[a, 0][:, inside].mean())
    ends = table[["difference_low", "difference_high"]].to_numpy()[0]
    width = ends[1] - ends[0]
    np.testing.assert_allclose(ends, np.quantile(expected, [0.025, 0.975]), atol=0.06 * width)


def markov_losses(generator, n_blocks, length, stay=0.8):
    """Tokens of a two-state chain under its own law and under the share of its states."""
    moves = generator.random((n_blocks, length)) > stay
    moves[:, 0] = generator.random(n_blocks) < 0.5
    chain = np.where(moves[:, 1:], -np.log(1 - stay), -np.log(stay))
    return np.stack([np.full(chain.shape, np.log(2)), chain]).reshape(2, 1, -1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "least", "most"), [(24, 0.89, 0.98), (8, 0.86, 0.96), (4, 0.65, 0.88)]
)
def test_intervals_hold_what_a_markov_source_says(n, least, most):
    """A bigram's gain over the unigram is the mutual information of neighbours."""
    truth = (-0.8 * np.log(0.8) - 0.2 * np.log(0.2)) - np.log(2)
    generator = np.random.default_rng(0)
    held = []
    for _ in range(150):
        blocks = np.repeat(range(n), 39)
        made = comparison(markov_losses(generator, n, 40), blocks=blocks, text="")
        row = loss_differences(made, curves(made, 400)).query("group == 'g1'").iloc[0]
        held.append(row["difference_low"] <= truth <= row["difference_high"])
    assert least <= np.mean(held) <= most


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "least", "most"), [(5, 0.89, 0.98), (2, 0.82, 0.94)])
def test_intervals_hold_blocks_and_seeds_that_vary(seeds, least, most):
    """Tokens of a block go together, seeds shift all of them: single tokens would mislead."""
    generator = np.random.default_rng(0)
    n, length = 16, 20
    blocks, held, naive = np.repeat(range(n), length), [], []
    for _ in range(150):
        shift = np.repeat([0, 0.3], seeds)[:, None] + generator.normal(0, 0.1, (2 * seeds, 1))
        of_blocks = generator.normal(0, 1, n) + np.repeat([[0], [1]], seeds, 0) * generator.normal(
            0, 0.4, n
        )
        losses = shift + of_blocks[:, blocks] + generator.normal(0, 0.5, (2 * seeds, n * length))
        groups = {"a": list(range(seeds)), "b": list(range(seeds, 2 * seeds))}
        made = comparison(losses[:, None], blocks=blocks, groups=groups, text="")
        row = loss_differences(made, curves(made, 400)).query("group == 'b'").iloc[0]
        held.append(row["difference_low"] <= 0.3 <= row["difference_high"])
        change = losses[seeds:].mean(0) - losses[:seeds].mean(0)
        naive.append(abs(change.mean() - 0.3) < 1.96 * change.std() / np.sqrt(change.size))
    assert least <= np.mean(held) <= most
    assert np.mean(naive) < 0.6


def test_learnt_is_where_an_analytic_curve_passes_the_threshold():
    x = np.log1p(np.arange(200.0))
    fast, slow = 8 - 1.5 * np.minimum(x, 4), 8 - np.minimum(x, 4)  # end at 2 and at 4
    slow[0] = 9.0  # a start above the other's changes nothing
    losses = np.repeat(np.stack([fast, slow])[:, :, None], 6, axis=2)
    made = comparison(losses, text="")
    table = learnt(made, curves(made, 50)).query("`class` == ''").set_index(["share", "group"])
    # From 8 towards 2: half way is 5, 90 % is 2.6, which the slow one never sees.
    assert table["threshold"].tolist() == pytest.approx([5, 5, 2.6, 2.6])
    assert table["step"][0.5, "g0"] == pytest.approx(np.expm1(2), rel=0.01)
    assert table["step"][0.5, "g1"] == pytest.approx(np.expm1(3), rel=0.01)
    assert table["ratio"][0.5, "g1"] == pytest.approx(np.expm1(3) / np.expm1(2), rel=0.01)
    assert table["step_low"][0.5, "g0"] == pytest.approx(table["step"][0.5, "g0"])
    assert table["step"][0.9, "g0"] == pytest.approx(np.expm1(3.6), rel=0.01)
    assert table["step"][0.9, "g1"] == table["step_high"][0.9, "g1"] == np.inf
    rising = comparison(losses[:, ::-1], text="")
    assert learnt(rising, curves(rising, 50))["step"].isna().all()


# ---- which runs, which tokens ----


def with_columns(run_dir, target: Path, **columns) -> str:
    """A copy of a run whose table of tokens says something else."""
    from lit_gamma.callbacks.probe_loss.tokens import write_tokens

    shutil.copytree(run_dir, target)
    table = trajectory.load(run_dir)["probe_tokens"]
    probe = trajectory.tokens(run_dir).attrs["probe"]
    kept = {name: table[name] for name in table} | columns
    write_tokens(target / "trajectory/probe_tokens.arrow",
                 {k: v for k, v in kept.items() if v is not None}, {"probe": probe})  # fmt: skip
    return str(target)


def test_classes_are_what_the_best_setting_reaches_whoever_comes_first(runs, tmp_path):
    n = len(trajectory.load(runs["a"])["probe_tokens"])
    contexts = {f"context_{2**i}": np.full(n, 5.0) for i in range(5)}
    ngrams = dict.fromkeys(("unigram", "bigram", "trigram"), np.full(n, 4.0))
    knows = [np.arange(n) % 4 == 0, np.arange(n) % 8 == 0]  # b knows half of what a knows
    copies = [
        with_columns(runs[name], tmp_path / name, position=np.full(n, 20), **contexts, **ngrams,
                     full_context=np.where(known, 0.1, 5.0))
        for name, known in zip("ab", knows, strict=True)
    ]  # fmt: skip
    one, other = align(copies), align(copies[::-1])
    pd.testing.assert_frame_equal(one.tokens, other.tokens)
    assert (one.groups, other.groups) == (
        {"γ = 0.5": [0], "γ = 1.0": [1]}, {"γ = 1.0": [0], "γ = 0.5": [1]}
    )  # fmt: skip
    for column, known in (("class", knows[0]), ("class_by_mean", knows[1])):
        expected = np.where(known, "context_constrained", "unpredictable")
        assert (one.tokens[column] == expected).all()


def test_runs_form_groups_by_what_differs_but_the_seed(runs, tmp_path):
    assert align([runs["b"], runs["a"], runs["a2"]]).groups == {"γ = 1.0": [0], "γ = 0.5": [1, 2]}
    assert align([runs["a"], runs["a2"]]).groups == {"seed = 1": [0], "seed = 2": [1]}
    shutil.copytree(runs["a"], tmp_path / "c")
    assert list(align([runs["a"], tmp_path / "c"]).groups) == [runs["a"], str(tmp_path / "c")]
    config = tmp_path / "c" / "config.yaml"
    config.write_text(config.read_text().replace("weight_decay: 0.1", "weight_decay: 1.0"))
    expected = {"weight_decay = 0.1": [0, 1], "weight_decay = 1.0": [2]}
    assert align([runs["a"], runs["a2"], tmp_path / "c"]).groups == expected
    config.write_text(config.read_text().replace("init_std: null", "init_std: 0.02"))
    summary = tmp_path / "c" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "gamma": None}))
    of_std = "weight_decay = 1.0, init_std = 0.02"
    expected = {"γ = 0.5, weight_decay = 0.1": [0], of_std: [1]}
    assert align([runs["a"], tmp_path / "c"]).groups == expected
    config = {"m": {"class_path": "a.B", "init_args": {"x": 1}}, "l": [{"class_path": "p.Q"}]}
    assert flat(config) == {"m.class_path": "a.B", "m.x": 1, "l.Q.class_path": "p.Q"}


def test_what_cannot_be_compared_is_said_and_nothing_written(runs, command_line, tmp_path):
    def said(*arguments) -> str:
        with pytest.raises(SystemExit) as exit_:
            command_line("compare", *map(str, arguments), f"--out={tmp_path / 'r.html'}")
        assert set(tmp_path.glob("r*")) == set()
        return str(exit_.value.code)

    a, b = runs["a"], runs["b"]
    assert re.search("at least two runs, got 1", said(a))
    assert re.search(f"{a} and {a}/ are the same run", said(a, f"{a}/"))
    for gone in ([tmp_path / "gone"], [a, tmp_path / "gone"]):
        assert re.search("/gone is not a directory", said(*gone))
    assert re.search(r"no trajectory/\*.arrow and no summary.json", said(a, Path(a).parent))
    with pytest.raises(SystemExit) as exit_:
        command_line("compare", a, b, f"--out={tmp_path}")
    assert "is a directory" in str(exit_.value.code)
    with pytest.raises(InputError) as error:
        align([a, runs["longer"]])
    other = str(error.value)
    assert re.search(f"{a} and {runs['longer']} followed different tokens", other)
    assert re.search(r"they hold 3\d\d and 5\d\d tokens", other)
    assert "data.context_length is 24 and 32" in other
    assert "tokenizer" not in other


def test_unfinished_runs_are_compared_without_classes(runs, tmp_path):
    contexts = {f"context_{2**i}": None for i in range(5)}
    going_on = with_columns(
        runs["b"], tmp_path / "b", full_context=None, **{"class": None}, **contexts
    )
    (tmp_path / "b" / "summary.json").unlink()
    made = align([runs["a"], going_on])
    assert made.steps[-1] == 9
    assert "class" not in made.tokens
    page = render(made, compute(made))
    assert "Without classes" in page
    assert going_on in page


# ---- the page ----

HOSTILE = [
    "<script>alert(1)</script>",
    "\"'>",
    "</i></p>",
    "a\nb\r\t\x00",
    "‮\u2028",
    "�",
    "{{ 7*7 }}",
    "",
]


def test_the_page_asks_for_nothing_and_shows_tokens_as_they_are(runs):
    made = align([runs["a"], runs["b"]])
    made.tokens["text"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(made.tokens))]
    made.tokens["set"] = made.tokens["set"].astype(str).replace("plain", "<img src=x>")
    made.groups["</script><b>"] = made.groups.pop("γ = 1.0")
    page = render(made, compute(made))
    for found in re.findall(r"(?:src|href|action|poster|srcset)=[\"']?([^\s\"'>]*)", page):
        assert found == "data:," or found.startswith("#") or "x&gt;" in found, found
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|[\"'(]//", page)
    assert page.count("<script") == page.count("</script>") == 3
    assert "<img" not in page
    assert "{{ 7*7 }}" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a↵\nb␍␉␀" in page
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["groups"] == ["γ = 0.5", "</script><b>"]


def test_findings_say_what_the_intervals_say():
    assert verdict(-0.12, -0.15, -0.1) == "lower by 0.120 [0.100, 0.150] nats"
    assert verdict(0.12, 0.1, 0.15) == "higher by 0.120 [0.100, 0.150] nats"
    assert verdict(0.01, -0.02, 0.04) == "not clearly different (+0.010 [−0.020, +0.040])"
    assert verdict(np.nan, np.nan, np.nan).startswith("unknown")
    generator = np.random.default_rng(1)
    classes = np.repeat([["trivial", "context_constrained"]], 200, 0).ravel()
    gain = np.where(classes == "trivial", 0.0, 0.5)
    losses = generator.gamma(2, 1, 400) - [[0], [1]] * gain + generator.normal(0, 0.2, (2, 400))
    made = comparison(losses[:, None], blocks=np.arange(400) // 10, classes=classes)
    of_trivial, of_constrained = (classes == c for c in ("trivial", "context_constrained"))
    ((said, gap),) = main_findings(made, curves(made), curves(made))
    change = losses[1] - losses[0]
    assert said.startswith("At step 0 the loss of g1, against g0, is lower by ")
    assert f"by {-change[of_constrained].mean():.3f} [" in said
    assert "not clearly different" in said.split("constrained tokens (200 of 400), ")[1][:25]
    less = change[of_constrained].mean() - change[of_trivial].mean()
    assert gap.startswith(
        f"Difference on context-constrained tokens less that on trivial ones: −{-less:.3f}"
    )


def test_what_has_no_shape_is_made_visible():
    assert visible("a b") == "a b"
    assert visible("‮\x85") == "��"
    assert visible("") == "∅"
    assert [shade(d) for d in (0.05, -0.3, 1.0, -9, np.nan)] == ["", "a2", "b5", "a10", ""]


def test_charts_stand_records_that_are_short_flat_or_broken():
    steps = np.array([0])
    one = panel([Line(0, steps, np.array([2.0]))])
    assert "nan" not in one + panel(
        [Line(0, np.array([0, 5]), np.array([np.nan, np.nan]))], log=True
    )
    flat_line = panel([Line(1, np.array([0, 10]), np.array([1.0, 1.0]))], log=True, base=1.0)
    assert re.search(r'class="line g1" d="M40\.0 [\d.]+L332\.0', flat_line)
    bar = interval_bar([(0, (1.0, 0.5, np.inf)), (1, (np.nan,) * 3)], 0.0, 2.0)
    assert "inf" not in bar
    assert "nan" not in bar
