"""A series of checkpoints, measured afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.families import FAMILIES
from helpers.runs import fit, tiny_module
from huggingface_hub.errors import RevisionNotFoundError
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import InputError, neurons, series, trajectory
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    KeepCheckpoints,
    Overview,
    Schedule,
    WeightNorms,
    WeightTrajectory,
)
from lit_gamma.metrics import singular_values, stable_rank
from lit_gamma.series import hub
from lit_gamma.series.stored import open_stored
from lit_gamma.series.weights import StoredWeights

STEPS = range(0, 60, 3)


@pytest.fixture(scope="module")
def live(tmp_path_factory) -> Path:
    """A run recorded at every step, which kept 20 checkpoints."""
    root, every = tmp_path_factory.mktemp("runs"), Schedule(every=1)
    callbacks = [Condensation(every), EffectiveRank(every), WeightNorms(every)]
    kept = KeepCheckpoints(Schedule(every=3))
    fit(root, *callbacks, kept, version="live", max_steps=STEPS[-1], enable_checkpointing=True)
    assert len(list(root.glob("live/checkpoints/*.ckpt"))) == len(STEPS) == 20
    return root / "live"


def matrices(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    return {n.removesuffix(".weight"): w.double() for n, w in state.items() if w.ndim == 2}


def compare_tables(found: Path, expected: Path, leave_out: tuple[str, ...] = ()) -> None:
    got, want = trajectory.load(found), trajectory.load(expected)
    assert got.keys() == {"condensation", "effective_rank", "weight_norms"}
    for name, table in got.items():
        same = want[name][want[name]["step"].isin(table["step"])].reset_index(drop=True)
        assert list(table) == list(same)
        assert len(table) == len(same)
        for column in set(table) - set(leave_out):
            if table[column].dtype == np.float32:
                np.testing.assert_allclose(table[column], same[column], rtol=1e-6, err_msg=column)
            else:
                assert table[column].equals(same[column]), column


@pytest.fixture(scope="module")
def measured(live, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("measured") / "run"
    series.measure(str(live), out)
    return out


def test_twenty_checkpoints_give_what_was_recorded_live_at_their_steps(live, measured):
    relative = ("update_ratio", "spectral_norm", "spectral_norm_error")
    compare_tables(measured, live, leave_out=relative)
    before, last = None, 0
    for step, rows in trajectory.load(measured)["weight_norms"].groupby("step"):
        now = matrices(live / f"checkpoints/step={step}.ckpt")
        assert list(rows["matrix"]) == list(now)
        for row in rows.itertuples():
            exact = torch.linalg.matrix_norm(now[row.matrix], 2).item()
            assert row.spectral_norm == pytest.approx(exact, rel=3e-6)
            assert row.spectral_norm <= exact <= row.spectral_norm + row.spectral_norm_error
            if before is not None:
                change = (now[row.matrix] - before[row.matrix]).norm() / before[row.matrix].norm()
                assert row.update_ratio == pytest.approx(change.item() / (step - last), rel=1e-5)
        assert rows["update_ratio"].isna().all() == (before is None)
        before, last = now, step
    assert step == STEPS[-1]


def test_heads_are_measured_apart(tmp_path):
    module = tiny_module(n_heads=2)
    state = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save({**state, "global_step": 7}, tmp_path / "last.ckpt")
    callbacks = [EffectiveRank(Schedule(every=1)), Overview(per_head=True)]
    series.measure(str(tmp_path / "last.ckpt"), tmp_path / "run", callbacks)
    table = trajectory.load(tmp_path / "run")["effective_rank"]
    heads = list(neurons(module, per_head=True))
    assert list(table["matrix"]) == [matrix.name for matrix in heads]
    expected = [stable_rank(singular_values(matrix.weight)).item() for matrix in heads]
    np.testing.assert_allclose(table["stable_rank"], expected, rtol=1e-5)


def test_it_leaves_what_a_run_leaves_and_compares_with_one(live, measured, tmp_path, command_line):
    summary = json.loads((measured / "summary.json").read_text())
    assert (summary["status"], summary["gamma"], summary["steps"]) == ("finished", 0.8, STEPS[-1])
    assert {"phases", "in_words", "strongest_condensation"} <= summary.keys()
    assert "holes" not in summary
    assert "on top" not in (measured / "report.html").read_text()
    shown = EventAccumulator(str(measured))
    shown.Reload()
    curve = shown.Scalars("3_effective_rank/effective_rank_over_null/query")
    table = trajectory.load(measured)["effective_rank"].query("role == 'query'")
    means = table.groupby("step")["effective_rank_over_null"].mean()
    assert [point.step for point in curve] == list(means.index) == list(STEPS)
    assert [point.value for point in curve] == pytest.approx(list(means), rel=1e-6)
    assert {"2_condensation/cosines", "trajectory/overview"} <= set(shown.Tags()["images"])
    command_line("compare", str(live), str(measured), f"--out={tmp_path / 'both.html'}")
    assert (tmp_path / "both.html").is_file()


def test_it_goes_on_where_it_was_interrupted(
    live, measured, tmp_path, command_line, monkeypatch, capsys
):
    out, read, interrupted = tmp_path / "run", StoredWeights.matrix, set()

    def impatient(self, position, of):
        step = int(of.path.stem.partition("=")[2])
        if (position, step) in {(3, 12), (7, 21)} - interrupted:
            interrupted.add((position, step))
            raise KeyboardInterrupt
        return read(self, position, of)

    monkeypatch.setattr(StoredWeights, "matrix", impatient)
    kept = [f"{live}/checkpoints/step={some}.ckpt" for some in ("?", "[12]?")]
    command = ("measure", *kept, f"--out={out}")
    for done in (4, 7):
        with pytest.raises(SystemExit, match="the same command goes on"):
            command_line(*command)
        assert json.loads((out / "measured.json").read_text())["steps"] == [*STEPS[:done]]
    out = out.rename(tmp_path / "moved")
    command_line(*command[:-1], f"--out={out}")
    assert "10 of 10 checkpoints, the last of step 27" in capsys.readouterr().out
    compare_tables(out, measured)
    monkeypatch.setattr(StoredWeights, "matrix", None)  # Nothing is measured twice.
    command_line(*command[:-1], f"--out={out}")
    compare_tables(out, measured)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_weights_alone_tell_what_their_class_does(family, tmp_path):
    pytest.importorskip("transformers", reason="pip install lit-gamma[test] has it")
    model = family.build()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    if hasattr(model, "config"):
        model.config.to_json_file(tmp_path / "config.json")
    stored = open_stored(tmp_path)
    weights = StoredWeights(stored, None)
    for i, (expected, got) in enumerate(zip(neurons(model), weights.matrices, strict=True)):
        assert (got.name, got.role, got.layer) == (expected.name, expected.role, expected.layer)
        assert torch.equal(weights.matrix(i, stored), expected.weight)


class FourthMoment(WeightTrajectory):
    def measure(self, weights):
        z = weights.weight / weights.weight.std((1, 2), keepdim=True)
        return {"kurtosis": (z**4).mean((1, 2))}


def test_shards_of_a_gpt_neox_in_half_precision_and_a_callback_of_ones_own(tmp_path):
    pytest.importorskip("transformers", reason="pip install lit-gamma[test] has it")
    models = {step: FAMILIES["GPT-NeoX, Pythia"].build().half() for step in (0, 1000, 11000)}
    for step, model in models.items():
        model.save_pretrained(tmp_path / f"pythia/step{step}", max_shard_size="8KB")
    assert len(list(tmp_path.glob("pythia/step0/*.safetensors"))) > 1
    series.measure(str(tmp_path / "pythia"), tmp_path / "run", [FourthMoment()])
    table = trajectory.load(tmp_path / "run")["fourth_moment"]
    assert list(table["step"].unique()) == [0, 1000, 11000]
    for step, rows in table.groupby("step"):
        named = {"lm_head": "embed_out"}  # In files, as EleutherAI's are.
        expected = {named.get(m.name, m.name): m.weight.double() for m in neurons(models[step])}
        assert set(rows["matrix"]) == set(expected)
        for row in rows.itertuples():
            w = expected[row.matrix]
            assert row.kurtosis == pytest.approx(((w / w.std()) ** 4).mean().item(), rel=1e-4)


def layer(width: int = 4) -> dict[str, torch.Tensor]:
    return {"mlp.up.weight": torch.randn(8, width), "mlp.up.bias": torch.zeros(8)}


def test_a_broken_one_is_left_out_and_is_a_gap(tmp_path):
    for step in (1, 2, 3, 4):
        (tmp_path / f"step{step}").mkdir()
        save_file(layer(), tmp_path / f"step{step}/model.safetensors")
    file = tmp_path / "step2/model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    (tmp_path / "step3/model.safetensors").unlink()
    with pytest.warns(UserWarning, match="is left out") as said:
        summary = series.measure(str(tmp_path), tmp_path / "run", [FourthMoment()])
    assert [
        "step2/model.safetensors is no checkpoint that can" in str(w.message) for w in said
    ] == [
        True,
        False,
    ]
    assert list(trajectory.load(tmp_path / "run")["fourth_moment"]["step"]) == [1, 4]
    assert summary["holes"] == {"fourth_moment": [(2, 2), (3, 3)]}
    save_file(layer(), tmp_path / "step0.safetensors")
    with pytest.warns(UserWarning, match="up to step 4; step 0 before it is left out"):
        series.measure(str(tmp_path), tmp_path / "run", [FourthMoment()])


def test_foreign_checkpoints_need_no_class_and_tied_weights_come_once(tmp_path):
    table = torch.randn(9, 4)
    for i, rate in enumerate((1.0, 2.0)):
        kept = {"wte.weight": table * rate, "h.0.mlp.up.weight": torch.randn(8, 4)}
        kept["lm_head.weight"] = kept["wte.weight"]
        kept["h.0.attn.masked_bias"] = torch.tensor(-1e9)  # Buffers, as in EleutherAI's files.
        kept["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        hparams = {"gamma": 0.3, "config": SimpleNamespace(width=3)}
        held = {"state_dict": kept, "hyper_parameters": hparams, "global_step": 10 * i + 1}
        torch.save(held, tmp_path / f"{'ab'[i]}.ckpt")
    (tmp_path / "notes.bin").write_text("no checkpoint")
    with pytest.warns(UserWarning, match=r"left out: .*notes\.bin"):
        summary = series.measure(str(tmp_path), tmp_path / "run", [series.WeightNorms()])
    rows = trajectory.load(tmp_path / "run")["weight_norms"]
    assert list(rows["step"]) == [1, 1, 11, 11]
    assert list(rows["role"][:2]) == ["embedding", "mlp_up"]
    assert rows["update_ratio"][2] == pytest.approx(0.1)
    assert (summary["gamma"], summary["steps"]) == (0.3, 11)


def test_what_is_no_series_is_refused_in_one_line(tmp_path, live, monkeypatch):
    def refused(said: str, *checkpoints: str, out: Path = tmp_path / "out") -> None:
        with pytest.raises(InputError, match=said) as error:
            series.measure(checkpoints, out, [FourthMoment()])
        assert "\n" not in str(error.value)

    (tmp_path / "empty").mkdir()
    refused("nowhere does not exist; give", str(tmp_path / "nowhere"))
    refused("empty is neither a checkpoint nor", str(tmp_path / "empty"))
    (tmp_path / "stepless").mkdir()
    save_file(layer(), tmp_path / "stepless/model.safetensors")
    refused("its step is not known; name it by its step", str(tmp_path / "stepless"))
    broken = tmp_path / "step5.safetensors"
    broken.write_bytes((tmp_path / "stepless/model.safetensors").read_bytes()[:-3])
    refused(r"step5\.safetensors is no checkpoint that can be read", str(broken))
    assert not (tmp_path / "out").exists()
    refused("name another folder", str(live), out=live)
    for step, width in ((1, 4), (2, 6)):
        save_file(layer(width), tmp_path / f"w{width}-step{step}.safetensors")
    refused(r"has \[8, 6\] as mlp.up.weight, .*apart", *map(str, tmp_path.glob("w*")))

    with pytest.raises(InputError, match=r"WeightNorms needs a module, .*series\.WeightNorms"):
        series.measure(str(live), tmp_path / "out", [WeightNorms()])

    def fetch(repo, revision, **_):
        if revision == "step7":
            return str(tmp_path / "stepless")
        response = SimpleNamespace(headers={}, request=None, status_code=404)
        raise RevisionNotFoundError("404\nRevision Not Found", response=response)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:9")
    monkeypatch.setattr("lit_gamma.data.hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("lit_gamma.data.hub.constants.ENDPOINT", "http://localhost:9")
    refused("me/model@step7: the hub .* cannot be reached .*local folders", "me/model@step7")
    monkeypatch.setattr("lit_gamma.data.hub.constants.HF_HUB_OFFLINE", True)
    refused("me/model@step8: there is no such revision; .*lists", "me/model@step8")
    series.measure("me/model@step7", tmp_path / "fetched", [FourthMoment()])
    assert list(trajectory.load(tmp_path / "fetched")["fourth_moment"]["step"]) == [7]
