"""What happens between the weights, against the same computed again in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import lightning
import numpy as np
import pandas
import pytest
import torch
from helpers.references import cosine, geometry
from helpers.runs import Snapshots, fit, tiny_module
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn.utils import clip_grad_value_

import lit_gamma
from lit_gamma import InputError, trajectory
from lit_gamma.callbacks import Gradients, Overhead, Schedule, Updates

STEPS, CLIP = 14, 0.2
DUE = [0, 1, 2, 3, 6, 10]
EVERY = Schedule(every=1)


class Batches(lightning.Callback):
    """Keeps the micro-batches of every step."""

    def __init__(self):
        self.of_step = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.of_step.setdefault(trainer.global_step, []).append(batch)


OPTIONS = {"max_steps": STEPS, "accumulate_grad_batches": 2, "gradient_clip_val": CLIP}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Fourteen clipped steps of two micro-batches, with a checkpoint of each, and all weights."""
    root, snapshots, batches = tmp_path_factory.mktemp("between"), Snapshots(), Batches()
    keep = ModelCheckpoint(root, "{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = fit(root, snapshots, batches, Updates(), Gradients(), keep,
                  enable_checkpointing=True, **OPTIONS)  # fmt: skip
    return trajectory.load(trainer.log_dir), snapshots.weights, batches.of_step, root


def double(weights, matrix: str) -> np.ndarray:
    return weights[f"{matrix}.weight"].double().numpy()


def test_updates_are_those_of_the_weights_before_and_after_the_step(recorded):
    tables, weights, _, _ = recorded
    assert sorted(set(tables["updates"]["step"])) == [*DUE, STEPS]
    for row in tables["updates"].to_dict("records"):
        now, start = (double(weights[step], row["matrix"]) for step in (row["step"], 0))
        far = np.linalg.norm(now - start) / np.linalg.norm(start)
        assert row["distance"] == pytest.approx(far, rel=1e-5)
        assert row["cosine_with_start"] == pytest.approx(cosine(now, start), abs=1e-6)
        if row["step"] == 0:
            assert np.isnan([row["relative_norm"], row["effective_rank"], row["stable_rank"]]).all()
            continue
        before = double(weights[row["step"] - 1], row["matrix"])
        expected = geometry(now - before, None)
        names = ("effective_rank", "participation_ratio", "stable_rank")
        for name in (*names, *(f"{name}_over_null" for name in names)):
            assert row[name] == pytest.approx(expected[name], rel=1e-5), name
        relative = np.linalg.norm(now - before) / np.linalg.norm(before)
        assert row["relative_norm"] == pytest.approx(relative, rel=1e-5)
        assert row["cosine_with_weight"] == pytest.approx(cosine(now - before, before), abs=1e-5)
        if row["step"] > 1:
            last = before - double(weights[row["step"] - 2], row["matrix"])
            assert row["cosine_with_last"] == pytest.approx(cosine(now - before, last), abs=1e-5)


def exact_gradients(weights, micro_batches) -> dict[str, np.ndarray]:
    """The gradient of the mean loss, by autograd in float64."""
    module = tiny_module().double()
    module.load_state_dict(weights)
    for batch in micro_batches:
        logits = module.transformer(batch["input_ids"])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
        (loss / len(micro_batches)).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters()}


def test_gradients_are_read_complete_and_before_they_are_clipped(recorded):
    tables, weights, batches, _ = recorded
    assert sorted(set(tables["gradients"]["step"])) == DUE
    for step, rows in tables["gradients"].groupby("step"):
        found = exact_gradients(weights[step], batches[step])
        before = exact_gradients(weights[step - 1], batches[step - 1]) if step else None
        whole = np.sqrt(sum((g**2).sum() for g in found.values()))
        for row in rows.to_dict("records"):
            name = f"{row['matrix']}.weight"
            g, matrix = found[name], row["matrix"]
            update = double(weights[step + 1], matrix) - double(weights[step], matrix)
            expected = {
                "norm": np.linalg.norm(g),
                "rms": np.sqrt((g**2).mean()),
                "largest": np.abs(g).max(),
                "cosine_with_last": cosine(g, before[name]) if step else np.nan,
                "cosine_with_update": cosine(-g, update),
                "clipped_share": max(0, 1 - CLIP / whole),
            }
            for column, value in expected.items():
                close = pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True)
                assert row[column] == close, (step, matrix, column)
    assert (tables["gradients"]["clipped_share"] > 0.1).any()


def same_weights(first: Path, second: Path) -> bool:
    a, b = (torch.load(path, weights_only=False)["state_dict"] for path in (first, second))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("step", "also_kept"), [(4, []), (5, ["previous"]), (6, ["last"]), (9, ["previous"])]
)  # 6 and 10 are recorded.
def test_a_resumed_run_records_the_same_bit_for_bit_and_trains_the_same(
    recorded, tmp_path, step, also_kept
):
    tables, _, _, root = recorded
    again = [Updates(), Gradients()]
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=STEPS, save_top_k=-1)
    trainer = fit(tmp_path, *again, keep, ckpt_path=root / f"step={step}.ckpt",
                  enable_checkpointing=True, **OPTIONS)  # fmt: skip
    resumed = trajectory.load(trainer.log_dir)
    for name, table in tables.items():
        pandas.testing.assert_frame_equal(resumed[name], table, check_exact=True)
    assert same_weights(tmp_path / f"step={STEPS}.ckpt", root / f"step={STEPS}.ckpt")
    state = torch.load(root / f"step={step}.ckpt", weights_only=False)["callbacks"]
    kept = [name for s in state.values() for name in ("start", "previous", "last") if name in s]
    assert kept == ["start", *also_kept]


def test_training_is_the_same_without_them(recorded, tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=STEPS, save_top_k=-1)
    fit(tmp_path, keep, enable_checkpointing=True, **OPTIONS)
    assert same_weights(tmp_path / f"step={STEPS}.ckpt", recorded[3] / f"step={STEPS}.ckpt")


class Linears(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(24, 40, bias=False), nn.Linear(40, 24, bias=False)
        self.idle, self.frozen = nn.Linear(5, 4, bias=False), nn.Linear(4, 5, bias=False)
        self.frozen.requires_grad_(False)

    def loss(self) -> torch.Tensor:
        x = torch.randn(16, 24)
        return (self.down(self.up(x).relu()) - x).square().mean()


def test_random_updates_read_one_over_their_nulls_and_no_cosine(tmp_path):
    model = Linears()
    with lit_gamma.record(model, tmp_path, [Updates(EVERY)]) as recording, torch.no_grad():
        for _ in range(200):
            for parameter in (model.up.weight, model.down.weight):
                parameter += torch.randn_like(parameter)
            recording.step()
    table = trajectory.load(tmp_path)["updates"]
    rows = table[(table["step"] > 1) & table["matrix"].isin(["up", "down"])]
    for name in ("effective_rank", "participation_ratio", "stable_rank"):
        assert rows[f"{name}_over_null"].mean() == pytest.approx(1, abs=0.01), name
    for name in ("cosine_with_weight", "cosine_with_last"):
        error = 1 / np.sqrt(24 * 40 * len(rows))
        # Each update is in two pairs with a neighbour, and in the weights after it.
        assert abs(rows[name].mean()) < 5 * error, name
    assert rows["distance"].iloc[-1] > rows["distance"].iloc[0]
    idle = table[table["matrix"] == "idle"].iloc[1:]
    assert (idle[["relative_norm", "effective_rank", "distance"]] == 0).all(axis=None)
    assert idle["cosine_with_weight"].isna().all()


def test_a_loop_of_ones_own_shows_its_gradients(tmp_path):
    model = Linears()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with lit_gamma.record(model, tmp_path, [Gradients(EVERY)]) as recording:
        for step in range(4):
            model.loss().backward()
            recording.gradients()
            if step == 2:
                clip_grad_value_(model.parameters(), 0.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            other.step()
            recording.step()
    table = trajectory.load(tmp_path)["gradients"]
    assert set(table["matrix"]) == {"up", "down", "idle"}
    assert table[table["matrix"] == "idle"].iloc[:, 6:].isna().all(axis=None)
    rows = table[table["matrix"] != "idle"].set_index("step")
    assert rows.loc[[0, 1, 3], "cosine_with_update"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert list(rows["clipped_share"]) == [0, 0, 0, 0, 1, 1, 0, 0]


def test_gradients_that_are_not_shown_are_asked_for(tmp_path):
    model = Linears()
    with (
        pytest.raises(InputError, match=r"gradients finds no gradient in Linears: .*zero_grad"),
        lit_gamma.record(model, tmp_path, [Gradients()]) as recording,
    ):
        recording.gradients()
    with (
        pytest.raises(InputError, match=r"gradients records gradients: call gradients\(\)"),
        lit_gamma.record(model, tmp_path, [Gradients()]) as recording,
    ):
        recording.step()


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_under_hugging_face_s_trainer_sizes_are_those_after_clipping(tmp_path, clip):
    transformers = pytest.importorskip("transformers")
    from helpers.families import FAMILIES, batch_of

    from lit_gamma.hf import Trajectory

    torch.manual_seed(0)
    model = FAMILIES["GPT-2"].build()
    batch = batch_of("causal", torch.Generator().manual_seed(1))
    labels = batch["labels"]
    rows = [{name: values[i] for name, values in batch.items()} for i in range(4)]
    unclipped = copy.deepcopy(model)
    unclipped(**batch).loss.backward()
    options = transformers.TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, max_grad_norm=clip,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    recording = Trajectory(Gradients(EVERY))
    transformers.Trainer(model, options, train_dataset=rows, callbacks=[recording]).train()
    start = trajectory.load(tmp_path)["gradients"].query("step == 0")
    # Trainer divides by the number of labels, of which the first of each sample is not predicted.
    n_predicted, n_labels = ((x != -100).sum().item() for x in (labels[:, 1:], labels))
    norm = unclipped.transformer.wte.weight.grad.norm().item() * n_predicted / n_labels
    found = start.loc[start["role"] == "embedding", "norm"].item()
    if clip:
        assert found < clip < norm
        assert start["clipped_share"].isna().all()
    else:
        assert found == pytest.approx(norm, rel=1e-4)
        assert (start["clipped_share"] == 0).all()


def test_a_record_is_planned_with_what_prepares_it(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lit_gamma.recording.budget.divide",
        lambda left, steps, jobs, turns: seen.extend(jobs) or {},
    )
    callbacks = [Updates(EVERY), Gradients(EVERY)]
    fit(tmp_path, *callbacks, Overhead(overhead=0.5), max_steps=12)
    costs = {job.callback: job.cost for job in seen}
    assert costs["updates"] > 0
    assert costs["gradients"] > 0
