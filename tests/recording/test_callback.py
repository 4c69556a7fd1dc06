"""What the callbacks record: which steps, which values, and through resume and interrupts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import lightning
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from helpers.runs import fit, tiny_module
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from lit_gamma import InputError, metrics, trajectory
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    Overview,
    RunSummary,
    Schedule,
    TokenLoss,
    WeightGroup,
    WeightNorms,
)

NO_IMAGES = {"heatmap_roles": ()}


def all_callbacks(**schedule):
    made = Schedule(**(schedule or {"every": 1}))
    return [
        Condensation(made, **NO_IMAGES),
        EffectiveRank(made, None),
        WeightNorms(made),
        TokenLoss(made),
    ]


class Snapshots(lightning.Callback):
    """Keeps every batch with the weights it was run with, independently of the package's hooks."""

    def __init__(self):
        self.weights, self.batches = {}, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step = trainer.global_step
        self.weights[step] = {k: v.clone() for k, v in pl_module.state_dict().items()}
        self.batches.setdefault(step, []).append(batch)

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module, None, 0)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Seven optimizer steps of three micro-batches each, recorded and snapshot."""
    root, snapshots = tmp_path_factory.mktemp("recorded"), Snapshots()
    trainer = fit(root, snapshots, *all_callbacks(), max_steps=7, accumulate_grad_batches=3)
    return trajectory.load(trainer.log_dir), snapshots, trainer


def test_every_optimizer_step_is_recorded_once_under_gradient_accumulation(recorded):
    tables, _, trainer = recorded
    assert trainer.global_step == 7
    for name in ("condensation", "effective_rank", "weight_norms"):
        assert all(
            list(rows["step"]) == list(range(8)) for _, rows in tables[name].groupby("matrix")
        )
    assert list(tables["token_loss"]["step"]) == list(range(7))


def test_geometry_at_step_t_is_that_of_w_t(recorded):
    tables, snapshots, _ = recorded
    for step, weights in snapshots.weights.items():
        rows = {name: table[table["step"] == step] for name, table in tables.items()}
        for i, matrix in enumerate(rows["condensation"]["matrix"]):
            w = weights[f"{matrix}.weight"].double().numpy()
            s = np.linalg.svd(w, compute_uv=False)
            p = s / s.sum()
            unit = w / np.linalg.norm(w, axis=1, keepdims=True)
            pairs = (unit @ unit.T)[~np.eye(len(w), dtype=bool)]
            expected = {
                "condensation": {
                    "mean_squared_cosine": (pairs**2).mean(),
                    "mean_absolute_cosine": np.abs(pairs).mean(),
                    "mean_squared_cosine_over_null": (pairs**2).mean() * w.shape[1],
                },
                "effective_rank": {
                    "effective_rank": np.exp(-(p * np.log(p)).sum()),
                    "stable_rank": (s**2).sum() / s[0] ** 2,
                    "participation_ratio": (s**2).sum() ** 2 / (s**4).sum(),
                },
                "weight_norms": {
                    "frobenius_norm": np.linalg.norm(w),
                    "max_row_norm": np.linalg.norm(w, axis=1).max(),
                    "mean_cosine": pairs.mean(),
                    "implied_gamma": -np.log(np.sqrt((w**2).mean())) / np.log(w.shape[1]),
                },
            }
            if step > 0:
                before = snapshots.weights[step - 1][f"{matrix}.weight"].double().numpy()
                change = np.linalg.norm(w - before) / np.linalg.norm(before)
                expected["weight_norms"]["update_ratio"] = change
            for table, quantities in expected.items():
                for name, value in quantities.items():
                    got = rows[table].iloc[i][name]
                    assert got == pytest.approx(value, rel=2e-4, abs=1e-6), (step, matrix, name)
            bounds = rows["weight_norms"].iloc[i]
            low, error = bounds["spectral_norm"], bounds["spectral_norm_error"]
            assert low <= s[0] * (1 + 1e-6) <= (low + error) * (1 + 1e-5), (step, matrix)


def test_token_loss_at_step_t_is_the_loss_of_w_t_on_all_its_micro_batches(recorded):
    tables, snapshots, _ = recorded
    for row in tables["token_loss"].itertuples():
        module = tiny_module()
        module.load_state_dict(snapshots.weights[row.step])
        logits = [module(b["input_ids"])[:, -1] for b in snapshots.batches[row.step]]
        labels = [b["labels"][:, -1] for b in snapshots.batches[row.step]]
        assert len(labels) == (1 if row.step == 3 else 3)  # 10 batches an epoch
        losses = torch.nn.functional.cross_entropy(
            torch.cat(logits).double(), torch.cat(labels), reduction="none"
        ).detach()
        assert row.mean == pytest.approx(losses.mean().item(), rel=1e-5)
        for name, q in {"q05": 0.05, "median": 0.5, "q95": 0.95}.items():
            assert getattr(row, name) == pytest.approx(np.quantile(losses, q), rel=1e-5)


def test_the_file_opens_in_datasets_and_explains_itself(recorded):
    _, _, trainer = recorded
    path = f"{trainer.log_dir}/trajectory/condensation.arrow"
    frame = datasets.Dataset.from_file(path).to_pandas()
    assert set(frame["role"]) >= {"query", "key", "embedding", "lm_head"}
    assert frame.loc[frame["role"] == "embedding", "layer"].isna().all()
    with pyarrow.ipc.open_stream(path) as stream:
        schema = stream.schema
    assert b"gamma" in schema.metadata[b"lit_gamma"]
    assert b"1/d_in" in schema.field("mean_squared_cosine").metadata[b"meaning"]


def test_a_vocabulary_s_cosines_come_from_a_sample_of_its_rows_within_the_stated_error():
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(32, generator=generator)
    pull = torch.rand(20_000, 1, generator=generator)  # rows condense to different degrees
    weight = torch.randn(20_000, 32, generator=generator) + 2 * pull * direction
    cosines = WeightGroup([0], [], weight[None]).cosines
    assert cosines.shape == (1, 4000, 4000)
    unit = (weight / weight.norm(dim=1, keepdim=True)).double()
    gram = unit.T @ unit
    whole = (gram.square().sum() - 20_000) / (20_000 * 19_999)
    sample = metrics.mean_squared_cosine(cosines)
    assert sample.item() == pytest.approx(whole.item(), rel=3 / 4000**0.5)


def test_recording_does_not_change_what_is_trained(tmp_path):
    trained = []
    for callbacks in ([], [Condensation(), *all_callbacks()[1:]]):
        lightning.seed_everything(3)
        module = tiny_module()
        fit(tmp_path, *callbacks, module=module, max_steps=12)
        trained.append(module.state_dict())
    assert all(torch.equal(trained[0][k], trained[1][k]) for k in trained[0])


class StopAt(lightning.Callback):
    def __init__(self, step, error=None):
        self.step, self.error = step, error

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            if self.error:
                raise self.error
            trainer.should_stop = True


@pytest.mark.parametrize("same_directory", [True, False])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path, same_directory):
    def run(root, *callbacks, version=None, **kwargs):
        keep = ModelCheckpoint(tmp_path / "ckpt", "{step}", every_n_train_steps=7, save_top_k=-1)
        torch.manual_seed(0)
        module = tiny_module()
        trainer = fit(
            root, *all_callbacks(), *callbacks, keep, module=module, version=version,
            enable_checkpointing=True, max_steps=25, **kwargs
        )  # fmt: skip
        return trajectory.load(trainer.log_dir), module

    # An epoch has 10 batches, so the checkpoint at step 14 is inside one; 4 steps are done twice.
    expected, module = run(tmp_path / "whole")
    first, _ = run(tmp_path / "parts", StopAt(18))
    assert first["condensation"]["step"].max() == 18
    root, version = ("parts", 0) if same_directory else ("elsewhere", None)
    # The second run's checkpoint: the first one's record is another.
    checkpoint = tmp_path / "ckpt" / "step=14-v1.ckpt"
    got, resumed = run(tmp_path / root, version=version, seed=99, ckpt_path=checkpoint)

    shown = EventAccumulator(str(tmp_path / root / f"version_{version or 0}"), {"scalars": 0})
    shown.Reload()
    assert [p.step for p in shown.Scalars("1_token_loss/mean")][-25:] == list(range(25))
    for name, table in expected.items():
        pandas.testing.assert_frame_equal(got[name], table, check_exact=True)
    for name, weight in module.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], weight), name


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("CUDA out of memory")])
def test_nothing_recorded_is_lost_when_training_is_cut_short(tmp_path, error):
    with pytest.raises((SystemExit, RuntimeError)):
        fit(tmp_path, *all_callbacks(), RunSummary(), StopAt(5, error), max_steps=25)
    run_dir = tmp_path / "version_0"
    tables = trajectory.load(run_dir)
    assert {name: table["step"].max() for name, table in tables.items()} == {
        "condensation": 5, "effective_rank": 5, "weight_norms": 5, "token_loss": 4
    }  # fmt: skip
    summary = json.loads((run_dir / "summary.json").read_text())
    status = "interrupted" if isinstance(error, KeyboardInterrupt) else f"RuntimeError: {error}"
    assert (summary["status"], summary["steps"], summary["gamma"]) == (status, 5, 0.8)


def test_the_summary_names_the_extremes_of_each_role(tmp_path):
    trainer = fit(tmp_path, *all_callbacks(), RunSummary(), max_steps=20, limit_val_batches=1.0,
                  check_val_every_n_epoch=1)  # fmt: skip
    summary = json.loads((tmp_path / "version_0" / "summary.json").read_text())
    table = trajectory.load(tmp_path / "version_0")["condensation"]
    query = table[table["role"] == "query"].groupby("step")["mean_squared_cosine_over_null"].mean()
    assert summary["strongest_condensation"]["query"] == {
        "step": int(query.idxmax()),
        "mean_squared_cosine_over_null": pytest.approx(query.max()),
    }
    found = trajectory.phases(tmp_path / "version_0").set_index(["role", "matrix", "quantity"])
    for (role, matrix, quantity), row in found.iterrows():
        expected = [step if np.isfinite(step) else None for step in row]
        of_role = summary["phases"][role]
        of = of_role["matrices"][matrix] if matrix else of_role
        assert list(of[quantity].values()) == expected
    phases = found.xs("", level="matrix")
    events = EventAccumulator(trainer.log_dir).Reload()
    (shown,) = events.Tensors("phases/text_summary")
    words, head = shown.tensor_proto.string_val[0].decode().split("\n\n")
    assert words.splitlines() == [f"- {sentence}" for sentence in summary["in_words"]]
    head, _, *lines = head.splitlines()
    assert head == "| role | quantity | condensation | expansion |"
    assert len(lines) == len(phases)
    step = phases["condensation_step"]["lm_head", "effective_rank_over_null"]
    (of_head,) = (line for line in lines if line.startswith("| lm_head | effective"))
    assert (f"| {step:.0f} [" if np.isfinite(step) else "| none |") in of_head
    assert set(summary["overhead"]) == set(trajectory.load(tmp_path / "version_0"))
    assert all(cost["share_of_step"] > 0 for cost in summary["overhead"].values())
    assert set(summary["metrics"]) == {
        f"val/{name}/{metric}"
        for name in ("seen", "unseen")
        for metric in ("loss", "perplexity", "accuracy")
    }
    logged = trainer.callback_metrics["val/seen/loss"].item()
    assert summary["metrics"]["val/seen/loss"] == pytest.approx(logged)
    assert summary["measured_at"] == 20


@pytest.mark.parametrize("all_tags", [False, True])
def test_tensorboard_has_the_first_steps_the_layout_the_pictures_and_the_hyperparameters(
    tmp_path, all_tags
):
    callbacks = [Condensation(pictures=Schedule(per_decade=1)), *all_callbacks()[1:]]
    overview = Overview(all_tags=all_tags)
    trainer = fit(tmp_path, *callbacks, overview, RunSummary(), max_steps=12, limit_val_batches=1.0)
    events = EventAccumulator(
        trainer.log_dir, {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    )
    events.Reload()
    table = trajectory.load(trainer.log_dir)["effective_rank"]
    of_role = table[table["role"] == "query"]
    query = of_role[of_role["layer"] == 1]
    tag, expected = "query", of_role.groupby("step")["effective_rank_over_null"].mean()
    if all_tags:
        tag, expected = "layer1.query", query["effective_rank_over_null"]
    shown = events.Scalars(f"3_effective_rank/effective_rank_over_null/{tag}")
    assert [point.step for point in shown] == list(range(13))
    assert np.allclose([point.value for point in shown], expected)
    assert [i.step for i in events.Images("2_condensation/cosines")] == [0, 1, 10, 12]
    assert [i.step for i in events.Images("trajectory/overview")] == [12]
    tags = events.Tags()
    assert "custom_scalars__config__" in tags["tensors"]
    parts = tags["scalars"] + tags["images"] + tags["histograms"]
    assert all_tags or len(parts) <= 60
    layout = layout_pb2.Layout.FromString(
        events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    )
    charts = [chart.multiline.tag for category in layout.category for chart in category.chart]
    assert max(map(len, charts)) <= 8
    assert {tag for chart in charts for tag in chart} <= set(tags["scalars"])
    assert [c.title for c in layout.category] == sorted(c.title for c in layout.category)
    if not all_tags:
        return
    spectra = events.Histograms("3_effective_rank/spectrum/layer1.query")
    assert [spectrum.step for spectrum in spectra] == [0, 1, 3, 10, 12]
    for spectrum in spectra:  # 16 x 16: the edge is 2 √16 rms, ‖W‖_F = 16 rms
        stable_rank = query.set_index("step")["stable_rank"][spectrum.step]
        assert spectrum.histogram_value.num == 16
        assert spectrum.histogram_value.max == pytest.approx(2 / stable_rank**0.5, rel=1e-4)


def test_hparams_have_gamma_the_seed_and_the_metrics_from_the_start(tmp_path):
    trainer = fit(tmp_path, TokenLoss(), RunSummary(), max_steps=12, limit_val_batches=1.0,
                  num_sanity_val_steps=1)  # fmt: skip
    (path,) = Path(trainer.log_dir).glob("events*")
    values = [v for event in EventFileLoader(str(path)).Load() for v in event.summary.value]
    tags = [value.tag for value in values]
    begun = tags.index("_hparams_/session_start_info")
    assert tags.count("_hparams_/session_start_info") == tags.count("_hparams_/experiment") == 1
    assert begun < tags.index("1_token_loss/mean") < tags.index("_hparams_/session_end_info")
    content = HParamsPluginData.FromString(values[begun].metadata.plugin_data.content)
    hparams = content.session_start_info.hparams
    assert hparams["gamma"].number_value == 0.8
    assert hparams["seed"].number_value == 0
    said = values[tags.index("_hparams_/experiment")].metadata.plugin_data.content
    names = [m.name.tag for m in HParamsPluginData.FromString(said).experiment.metric_infos]
    assert sorted(names) == [
        f"val/{s}/{m}" for s in ("seen", "unseen") for m in ("accuracy", "loss")
    ]
    assert set(names) <= set(tags)


def test_a_full_disk_leaves_a_hole_and_one_warning_and_training_goes_on(tmp_path):
    class FullDisk:
        """Takes the first half of a write and refuses the rest."""

        def __init__(self, file):
            self.file, self.room = file, True

        def write(self, data):
            if not self.room:
                raise OSError(28, "No space left on device")
            self.room = False
            return self.file.write(data[: len(data) // 2])

        def __getattr__(self, name):
            return getattr(self.file, name)

    class FullFromStep10To20(lightning.Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step in (10, 15, 20):
                ranks.flush()
                recorder = ranks.file.recorder
                file = recorder._stream._file._file
                recorder._stream._file._file = FullDisk(file) if trainer.global_step == 10 else file
                if trainer.global_step == 20:
                    recorder._stream._file._file = file.file

    ranks = EffectiveRank(Schedule(every=1), None)
    with pytest.warns(UserWarning, match="No space left on device.*its record has holes") as warned:
        trainer = fit(tmp_path, ranks, FullFromStep10To20(), max_steps=30)
    assert sum("No space left" in str(w.message) for w in warned) == 1
    steps = sorted(set(trajectory.load(trainer.log_dir)["effective_rank"]["step"]))
    assert steps == [*range(11), *range(21, 31)]


def test_a_missing_earlier_record_is_said_and_training_goes_on(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    first = fit(
        tmp_path,
        EffectiveRank(Schedule(every=1), None),
        keep,
        enable_checkpointing=True,
        max_steps=5,
    )
    shutil.rmtree(f"{first.log_dir}/trajectory")
    with pytest.warns(UserWarning, match="no longer at"):
        rest = fit(
            tmp_path,
            EffectiveRank(Schedule(every=1), None),
            ckpt_path=tmp_path / "step=5.ckpt",
            max_steps=8,
        )
    assert sorted(set(trajectory.load(rest.log_dir)["effective_rank"]["step"])) == [6, 7, 8]


def test_schedules_hold_step_0_and_what_they_name():
    log = Schedule(per_decade=4, dense_until=3)
    assert [s for s in range(120) if log.due(s)] == [0, 1, 2, 3, 6, 10, 18, 32, 56, 100]
    assert [s for s in range(12) if Schedule(every=5).due(s)] == [0, 5, 10]
    assert [s for s in range(12) if Schedule().due(s)] == [0]
    with pytest.raises(InputError, match="every=-1"):
        Schedule(every=-1)


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_log_spaced_steps_are_exactly_the_rounded_powers(per_decade, step):
    powers = {round(10 ** (e / per_decade)) for e in range(7 * per_decade)}
    assert Schedule(per_decade=per_decade).due(step) == (step == 0 or step in powers)
