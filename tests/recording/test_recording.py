"""What recording costs, waits for and survives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from helpers.runs import Snapshots, fit, tiny_module
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lit_gamma import InputError, metrics, trajectory
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    Overhead,
    RunSummary,
    Schedule,
    TokenLoss,
    TokenLossProfile,
    WeightNorms,
)
from lit_gamma.recording.budget import Calibration, Plan
from lit_gamma.trajectory.arrow import read_batches, up_to
from lit_gamma.trajectory.recorder import Recorder
from lit_gamma.trajectory.table import Table
from lit_gamma.trajectory.tensorboard import curves

SPARSE = Schedule(dense_until=2, per_decade=4)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_values_taken_in_turn_are_the_exact_ones_and_the_certificate_holds(tmp_path, gamma):
    snapshots = Snapshots()
    # The certificate supposes weights that change slowly, less than a tenth in a step.
    module = tiny_module(gamma, lr=1e-3, d_model=32)
    recorded = [Condensation(SPARSE, None, 2.0, heatmap_roles=()),
                EffectiveRank(SPARSE, None, 0.5), WeightNorms()]  # fmt: skip
    trainer = fit(tmp_path, snapshots, *recorded, module=module, max_steps=80)
    tables = trajectory.load(trainer.log_dir)

    def weight(row) -> np.ndarray:
        return snapshots.weights[row.step][f"{row.matrix}.weight"].double().numpy()

    for row in tables["condensation"].itertuples():
        unit = weight(row) / np.linalg.norm(weight(row), axis=1, keepdims=True)
        pairs = (unit @ unit.T)[~np.eye(len(unit), dtype=bool)]
        assert row.mean_squared_cosine == pytest.approx((pairs**2).mean(), rel=1e-5)
        assert row.mean_absolute_cosine == pytest.approx(np.abs(pairs).mean(), rel=1e-5)
    for row in tables["effective_rank"].itertuples():
        s = np.linalg.svd(weight(row), compute_uv=False)
        p = s / s.sum()
        assert row.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-5)
        assert row.stable_rank == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-5)
    for row in tables["weight_norms"].itertuples():
        exact = np.linalg.svd(weight(row), compute_uv=False)[0]
        bounds = row.spectral_norm, row.spectral_norm + row.spectral_norm_error
        assert bounds[0] <= exact <= bounds[1], (row.step, row.matrix)

    n = len(set(tables["weight_norms"]["matrix"]))
    for name, rate in (("condensation", 2), ("effective_rank", 0.5)):
        counts = tables[name].groupby("step").size()
        due = [step for step in range(81) if SPARSE.due(step) or step == 80]  # the last
        assert list(counts.index[counts == n]) == due
        assert set(counts[counts < n]) == {max(1, rate)}
        assert len(counts) == (81 if rate == 2 else pytest.approx(len(due) + 35, abs=4))
        turns = tables[name][~tables[name]["step"].isin(due)]["matrix"].value_counts()
        assert turns.max() - turns.min() <= 3  # every matrix has its turn as often
    assert (tables["weight_norms"].groupby("step").size() == n).all()


WAITS = ("_local_scalar_dense", "nonzero", "_linalg_eigh", "_linalg_svd", "linalg_", "equal",
         "masked_select", "lift_fresh", "repeat_interleave.Tensor")  # fmt: skip


class Waits(TorchDispatchMode):
    """Notes the operations that make the host wait for an accelerator, or copy to or from it."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        if name.startswith(WAITS) and not name.startswith(("linalg_vector_norm", "linalg_qr")):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device_until_the_flush(tmp_path, monkeypatch):
    waits, flushes = Waits(), []
    callbacks = [
        Condensation(SPARSE, None, 1.0, Schedule()),
        EffectiveRank(SPARSE, None, 1.0, Schedule()),
        WeightNorms(),
        TokenLoss(),
        TokenLossProfile(Schedule(every=1)),
    ]
    for callback in callbacks:

        def watched(*args, original=callback.on_train_batch_end):
            if args[0].global_step > 1:  # constants are made once
                with monkeypatch.context() as patch:
                    for method in ("item", "cpu", "numpy", "tolist", "__bool__", "__float__"):

                        def forbidden(tensor, *_, method=method):
                            waits.seen.append(method)
                            raise AssertionError(method)

                        patch.setattr(torch.Tensor, method, forbidden)
                    with waits:
                        original(*args)
            else:
                original(*args)

        def flush(original=callback.flush):
            flushes.append(1)
            original()

        monkeypatch.setattr(callback, "on_train_batch_end", watched)
        monkeypatch.setattr(callback, "flush", flush)
    trainer = fit(tmp_path, *callbacks, max_steps=60)
    assert waits.seen == []
    assert len(flushes) == len(callbacks)  # at the end only
    assert len(trajectory.load(trainer.log_dir)["token_loss"]) == 60


def test_what_waits_too_long_or_grows_too_large_is_written(tmp_path, monkeypatch):
    def batches(**limits) -> int:
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(f"lit_gamma.trajectory.recorder.{name}", value)
            trainer = fit(tmp_path, WeightNorms(), max_steps=30)
        path = f"{trainer.log_dir}/trajectory/weight_norms.arrow"
        return len(read_batches(path))

    assert batches() == 1
    assert batches(FLUSH_STEPS=10) == 3  # 0 to 10, 11 to 21, 22 to 30
    assert batches(FLUSH_SECONDS=0) == 30  # steps 0 and 1 together
    assert batches(FLUSH_BYTES=1) == 30


def plan(overhead: float, record: float, training: float, steps: int, schedule: Schedule) -> Plan:
    calibration = Calibration()
    calibration.step_seconds = [9.0, 9.0, *[training] * 8]
    calibration.add("record", 7.0)
    calibration.add("write", 7.0)
    for _ in range(4):  # a quarter of it is its share of the writing
        calibration.add("record", 0.75 * record)
    calibration.add("write", record)
    calibration.add("write", 7.0)  # nothing was waiting
    return Plan(calibration, {"record": schedule}, steps, overhead)


def test_tensorboard_gets_steps_one_percent_apart_however_the_run_was_cut(tmp_path):
    """Item i is measured at the steps that are i modulo 3; two of the three share a label."""

    def recorded(name, steps, flush_every, kept=()):
        writer = SummaryWriter(tmp_path / name)
        table = Table("table", {"item": [0, 1, 2]}, ["a", "b", "b"])
        path = tmp_path / name / "table.arrow"
        recorder = Recorder(path, table, views=[curves(writer)], kept=kept)
        for step in steps:
            recorder.append(step, {"value": torch.tensor([float(step)])}, [step % 3])
            if step % flush_every == 0:
                recorder.flush()
        recorder.close()
        writer.close()
        events = EventAccumulator(str(tmp_path / name), {"scalars": 0}).Reload()
        return {
            tag: [(point.step, point.value) for point in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }

    whole = recorded("whole", range(2001), 100)
    first = recorded("cut", range(1000), 7)
    kept = read_batches(tmp_path / "cut" / "table.arrow", up_to(777))
    resumed = recorded("resumed", range(778, 2001), 50, kept)
    assert whole == resumed
    assert first == {t: [p for p in points if p[0] < 1000] for t, points in whole.items()}
    rows = sum(batch.num_rows for batch in read_batches(tmp_path / "whole" / "table.arrow"))
    assert rows == 2001

    shown = sorted({step for points in whole.values() for step, _ in points})
    assert shown[:101] == list(range(101))
    gaps = np.diff(shown[100:]) / shown[100:-1]
    assert 0.01 < gaps.min() <= gaps.max() <= 0.02
    assert len(shown) < 450
    assert whole["table/value/a"][-1][1] == (whole["table/value/a"][-1][0] // 3) * 3
    for step, mean in whole["table/value/b"][2:]:  # The newest of items 1 and 2.
        assert mean == np.mean([step - (step - i) % 3 for i in (1, 2)])


def test_the_budget_is_kept_over_the_whole_run():
    schedule = Schedule(dense_until=9)  # ten full steps of 40 ms
    costs = {"record": 0.04, "training": 0.1, "steps": 10_000, "schedule": schedule}
    # A matrix costs 2.5 ms; 1 % of 1000 s, less 0.4 s, buys .38 a step.
    assert plan(0.01, **costs).matrices_per_step(n_matrices=16) == 0.25
    assert plan(10.0, **costs).matrices_per_step(n_matrices=16) == 16
    # A quarter of .03 % buys .003, although the schedule alone takes more than the whole.
    assert plan(0.0003, **costs).matrices_per_step(n_matrices=16) == 2**-9
    assert plan(0.01, **costs).warning("ranks") is None
    said = plan(0.01, 0.04, 0.1, 100, Schedule(every=1)).warning("ranks")
    assert re.fullmatch(
        r"ranks will take about 40\.4% .* budget of 1\.0%.*'record' at 101 of 101 .*0\.41",
        said,
    )


def test_a_run_keeps_its_pace_says_what_it_cost_and_warns_once(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=20, save_top_k=-1)

    def run(**kwargs) -> tuple:
        ranks = EffectiveRank(SPARSE, overhead=0.5)
        norms = WeightNorms(overhead=1e-6)
        callbacks = [ranks, norms, Overhead(Schedule(every=10)), RunSummary(), keep]
        with pytest.warns(UserWarning, match="budget") as said:
            trainer = fit(tmp_path, *callbacks, enable_checkpointing=True, **kwargs)
        return ranks, trainer, [str(w.message) for w in said if "budget" in str(w.message)]

    ranks, trainer, said = run(max_steps=40)
    assert len(said) == 1
    assert said[0].startswith("weight_norms will take about")
    assert ranks.matrices_per_step > 0
    assert np.log2(ranks.matrices_per_step) % 1 == 0 or ranks.matrices_per_step == 15
    bill = trajectory.load(trainer.log_dir)["overhead"]
    assert list(bill["step"].unique()) == [10, 20, 30, 40]
    assert set(bill["callback"]) == {"effective_rank", "weight_norms", "overhead"}
    assert (bill.query("callback == 'weight_norms'")["ms_per_step"] > 0).all()

    state = torch.load(tmp_path / "step=20.ckpt", weights_only=False)["callbacks"]
    state["lit_gamma.effective_rank"]["matrices_per_step"] = 3.0
    resumed = EffectiveRank(SPARSE, overhead=0.5)
    resumed.load_state_dict(state["lit_gamma.effective_rank"])
    fit(tmp_path, resumed, max_steps=15)
    assert resumed.matrices_per_step == 3.0  # no second calibration


def test_an_unwritable_directory_costs_the_record_and_not_the_training(tmp_path):
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "trajectory").write_text("in the way")
    with pytest.warns(UserWarning, match=r"trajectory cannot be written") as said:
        trainer = fit(tmp_path, WeightNorms(), RunSummary(), version=0, max_steps=12)
    assert trainer.global_step == 12
    assert sum("cannot be written" in str(w.message) for w in said) == 1


def test_bf16_mixed_training_is_measured_on_its_float32_weights(tmp_path):
    trainer = fit(tmp_path, WeightNorms(), max_steps=5, precision="bf16-mixed")
    ratios = trajectory.load(trainer.log_dir)["weight_norms"].query("step > 0")["update_ratio"]
    assert (ratios > 0).all()
    assert len(set(ratios)) == len(ratios)


def test_tensor_parallel_sizes_are_refused(monkeypatch):
    module = tiny_module()
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    monkeypatch.setattr(type(module), "device_mesh", mesh)
    with pytest.raises(InputError, match="tensor_parallel_size is 2; set it to 1"):
        module.configure_model()


def test_bad_budgets_are_refused():
    with pytest.raises(InputError, match=r"overhead must be a positive share.*got 0"):
        WeightNorms(overhead=0)
    with pytest.raises(InputError, match=r"matrices_per_step must be .* got -1"):
        EffectiveRank(matrices_per_step=-1)


@pytest.mark.parametrize(("n", "d"), [(40, 24), (24, 40), (3, 12), (12, 3), (1, 9), (9, 1)])
def test_the_spectral_norm_follows_a_drifting_matrix_within_its_certificate(n, d):
    generator = torch.Generator().manual_seed(n)
    weight = torch.randn(2, n, d, generator=generator) / d
    drift = torch.randn(2, n, d, generator=generator) / d
    block = metrics.leading_block(weight, 8)
    eye = torch.eye(block.shape[-2])
    for _ in range(40):
        product = metrics.gram_product(weight, block)
        estimate, error = metrics.spectral_norm_bounds(*metrics.ritz_matrix(block, product))
        exact = torch.linalg.svdvals(weight.double())[:, 0]
        assert (estimate <= exact).all()
        assert (exact <= estimate + error).all()
        assert (error < 0.5 * exact).all()
        block = metrics.next_block(product)
        assert torch.allclose(block @ block.mT, eye, atol=1e-5)
        weight = weight + 0.02 * drift


def test_the_block_survives_zero_and_broken_matrices():
    zero = metrics.leading_block(torch.zeros(6, 5), 8)
    assert torch.allclose(zero @ zero.mT, torch.eye(5), atol=1e-6)
    product = metrics.gram_product(torch.zeros(6, 5), zero)
    estimate, error = metrics.spectral_norm_bounds(*metrics.ritz_matrix(zero, product))
    assert (estimate.item(), error.item()) == (0, 0)
    broken = torch.full((6, 5), torch.nan)
    product = metrics.gram_product(broken, metrics.leading_block(broken, 2))
    assert metrics.spectral_norm_bounds(*metrics.ritz_matrix(zero[:2], product))[0].isnan()


def test_a_single_neuron_has_no_pair_and_ends_nothing(tmp_path):
    class Heads(lightning.LightningModule):
        """Of single neurons, the norms of some round to less and of some to more than one."""

        def __init__(self):
            super().__init__()
            self.lm_head = torch.nn.ModuleList(torch.nn.Linear(d, 1) for d in range(3, 40))

        def training_step(self, batch, batch_idx):
            return sum(head(batch[0][:, : head.in_features]).mean() for head in self.lm_head)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    rows = torch.utils.data.TensorDataset(torch.randn(8, 40))
    recorded = [WeightNorms(), Condensation(), EffectiveRank(), RunSummary()]
    trainer = fit(tmp_path, *recorded, module=Heads(), data=DataLoader(rows, 2), max_steps=3)
    tables = trajectory.load(trainer.log_dir)
    assert tables["weight_norms"]["mean_cosine"].isna().all()
    assert tables["condensation"]["mean_squared_cosine"].isna().all()
    assert tables["weight_norms"]["rms"].notna().all()
    summary = json.loads(Path(trainer.log_dir, "summary.json").read_text())
    assert summary["strongest_condensation"] == {}
