"""Loggers other than TensorBoard's get the lines that tell most, with the values of the files."""

from __future__ import annotations

import io
import json
import struct
from collections import defaultdict
from pathlib import Path

import lightning
import pandas as pd
import pytest
from helpers.runs import tiny_module
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gamma import trajectory
from lit_gamma.callbacks import Condensation, EffectiveRank, Overview, TokenLoss, WeightNorms
from lit_gamma.data import AnchorComposition
from lit_gamma.recording.schedule import Schedule

STEPS = 120
QUERY = "2_condensation/mean_squared_cosine_over_null/query"


def fit(loggers, *more, steps=STEPS, **options) -> lightning.Trainer:
    every = Schedule(every=1)
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=loggers,
        callbacks=[
            WeightNorms(),
            Condensation(every, pictures=Schedule(every=100)),
            EffectiveRank(every),
            TokenLoss(),
            *more,
        ],
        max_steps=steps,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **options},
    )
    trainer.fit(tiny_module(), AnchorComposition(n_train=160, n_val=32, batch_size=16))
    return trainer


def recorded(run: Path) -> dict[int, float]:
    """The mean over the queries at each step that is shown: all to 100, then 1 % apart."""
    table = trajectory.load(run)["condensation"]
    means = table[table["role"] == "query"].groupby("step")["mean_squared_cosine_over_null"].mean()
    return {step: means[step] for step in [*range(101), *range(102, STEPS + 1, 2)]}


def synced(root: Path) -> list[dict]:
    """What ``wandb sync`` would send, row by row; the file is a log of LevelDB's."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = root.glob("wandb/offline-run-*/run-*.wandb")
    data, at, block, rows, part = path.read_bytes(), 7, 2**15, [], b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # The whole of a record, or its end.
            items = Record.FromString(part).history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
            part = b""
    return [row for row in rows if row]


def curve(rows: list[dict], tag: str, step: str) -> dict[int, float]:
    """Step to value, of a tag that has each step once and in order."""
    points = [(int(row[step]), row[tag]) for row in rows if tag in row and pd.notna(row[tag])]
    assert [at for at, _ in points] == sorted({at for at, _ in points})
    return dict(points)


def test_a_csv_file_has_tensorboards_values_and_tensorboard_has_them_once(tmp_path):
    fit([TensorBoardLogger(tmp_path, "", version="a"), CSVLogger(tmp_path, "", version="a")])
    events = EventAccumulator(str(tmp_path / "a"), {"scalars": 0}).Reload()
    rows = pd.read_csv(tmp_path / "a" / "metrics.csv").to_dict("records")
    tags = sorted(tag for tag in events.Tags()["scalars"] if tag[0].isdigit())
    assert 25 <= len(tags) <= 40
    for tag in tags:
        shown = [(point.step, point.value) for point in events.Scalars(tag)]
        assert len(shown) == len(dict(shown))
        assert curve(rows, tag, "step") == pytest.approx(dict(shown), rel=1e-6)
    assert curve(rows, QUERY, "step") == pytest.approx(recorded(tmp_path / "a"), rel=1e-6)


@pytest.mark.parametrize("all_tags", [False, True])
def test_forty_lines_are_logged_the_first_of_tensorboards_or_all(tmp_path, monkeypatch, all_tags):
    monkeypatch.setattr("lit_gamma.recording.other_loggers.MOST_TAGS", 12)
    fit(CSVLogger(tmp_path, "", version="a"), Overview(all_tags=all_tags), steps=3)
    names = [name for name in pd.read_csv(tmp_path / "a" / "metrics.csv") if name[0].isdigit()]
    if all_tags:
        assert "4_weight_norms/max_row_norm/layer1.query" in names
    else:
        assert len(names) == 12
        assert {"1_token_loss/mean", "1_token_loss/q95", QUERY} <= set(names)
        assert not any(name.startswith("4_") for name in names)


@pytest.mark.slow
def test_wandb_gets_every_line_in_order(tmp_path):
    wandb = pytest.importorskip("wandb")
    fit(WandbLogger(save_dir=tmp_path, offline=True))
    wandb.finish()
    shown = curve(synced(tmp_path), QUERY, "trainer/global_step")
    assert shown == pytest.approx(recorded(tmp_path), rel=1e-6)


@pytest.mark.slow
def test_mlflow_gets_every_line(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger(tracking_uri=f"file:{tmp_path}/store")
    fit(logger, default_root_dir=tmp_path)
    history = logger.experiment.get_metric_history(logger.run_id, QUERY)
    assert [point.step for point in history] == sorted({point.step for point in history})
    shown = {point.step: point.value for point in history}
    assert shown == pytest.approx(recorded(tmp_path), rel=1e-6)


@pytest.mark.slow
def test_wandb_and_mlflow_get_tensorboards_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = MLFlowLogger(tracking_uri=f"file:{tmp_path}/store")
    bias = WandbLogger(save_dir=tmp_path, offline=True)
    fit([TensorBoardLogger(tmp_path, "", version="a"), bias, store], Overview(), steps=102)
    wandb.finish()
    events = EventAccumulator(str(tmp_path / "a"), {"images": 0}).Reload()
    expected = [
        pixels(io.BytesIO(drawn.encoded_image_string))
        for tag in ("2_condensation/cosines", "trajectory/overview")
        for drawn in events.Images(tag)
    ]
    assert len(expected) == 3 + 1
    for kept in (
        tmp_path.glob("wandb/offline-run-*/files/**/*.png"),
        tmp_path.glob("store/**/*.png"),
    ):
        assert sorted(map(pixels, kept)) == sorted(expected)


def pixels(png) -> tuple:
    image = Image.open(png).convert("RGB")
    return image.size, hash(image.tobytes())


def test_a_resumed_run_repeats_nothing(tmp_path):
    logged = defaultdict(list)

    class Kept(CSVLogger):
        def log_metrics(self, metrics, step=None):
            for name in metrics:
                logged[name].append(step)

    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = fit(Kept(tmp_path, "", version="a"), steps=10, **options)
    last = trainer.checkpoint_callback.best_model_path
    again = fit(Kept(tmp_path, "", version="a"), steps=0, **options)
    again.fit_loop.epoch_loop.max_steps = 20
    again.fit(
        tiny_module(), AnchorComposition(n_train=160, n_val=32, batch_size=16), ckpt_path=last
    )
    assert logged[QUERY] == list(range(21))


def test_a_logger_that_fails_costs_one_warning_and_no_step(tmp_path):
    class Broken(CSVLogger):
        def log_metrics(self, metrics, step=None):
            if QUERY in metrics or "1_token_loss/mean" in metrics:
                raise ConnectionError("no route")

    loggers = [Broken(tmp_path, "b", version="a"), CSVLogger(tmp_path, "c", version="a")]
    with pytest.warns(
        UserWarning, match=r"Broken does not take .*ConnectionError: no route"
    ) as said:
        assert fit(loggers).global_step == STEPS
    assert len([w for w in said if "no route" in str(w.message)]) == 1
    rows = pd.read_csv(tmp_path / "c" / "a" / "metrics.csv").to_dict("records")
    assert curve(rows, QUERY, "step") == pytest.approx(recorded(tmp_path / "b" / "a"), rel=1e-6)
