"""What recording costs, waits for and survives."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from helpers.ranks import on_ranks
from helpers.runs import Snapshots, fit, tiny_module
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter

from lit_gamma import InputError, metrics, record, trajectory
from lit_gamma.callbacks import (
    Condensation,
    EffectiveRank,
    Gradients,
    Overhead,
    RunSummary,
    Schedule,
    TokenLoss,
    TokenLossProfile,
    Updates,
    WeightNorms,
)
from lit_gamma.recording.bill import Bill
from lit_gamma.recording.budget import Job, Share, Turns, divide
from lit_gamma.trajectory.arrow import read_batches, up_to
from lit_gamma.trajectory.recorder import Recorder
from lit_gamma.trajectory.table import Table
from lit_gamma.trajectory.tensorboard import curves

# Tokens of each rank's batch at each step; the quantiles are of 30 of each rank at most.
LENGTHS = [(30, 20), (30, 30), (12, 45), (61, 7)]
SPARSE = Schedule(dense_until=2, per_decade=4)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_values_taken_in_turn_are_the_exact_ones_and_the_certificate_holds(tmp_path, gamma):
    snapshots = Snapshots()
    # The certificate supposes weights that change slowly, less than a tenth in a step.
    module = tiny_module(gamma, lr=1e-3, d_model=32)
    recorded = [Condensation(SPARSE, 2.0, heatmap_roles=()),
                EffectiveRank(SPARSE, 0.5), WeightNorms()]  # fmt: skip
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
        Condensation(SPARSE, 1.0, Schedule()),
        EffectiveRank(SPARSE, 1.0, Schedule()),
        WeightNorms(),
        TokenLoss(),
        TokenLossProfile(Schedule(every=1)),
        Updates(Schedule(every=2)),
        Gradients(Schedule(every=2)),
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


def job(callback: str, times: int, cost: float, weight: int, job: str = "record") -> Job:
    return Job(callback, job, times, cost, weight)


def test_what_takes_most_is_made_rarer_until_all_fits_pictures_first():
    def jobs() -> list[Job]:
        return [
            job("sizes", 1000, 0.01, 1),  # 10 s
            job("task", 40, 0.1, 4),  # 4 s, which count as 16
            job("task", 8, 0.5, 8, "pictures"),  # 4 s, which count as 32
        ]

    turns = [Turns("ranks", 16, 0.16), Turns("cosines", 4, 0.04)]
    planned = jobs()
    assert divide(1e9, 1000, planned, turns) == {"ranks": 16, "cosines": 4}
    assert [of.stride for of in planned] == [1, 1, 1]
    planned = jobs()  # 18 s into 15 s less a tenth: pictures, the task, pictures again.
    per_step = divide(15.0, 1000, planned, turns)
    assert [of.stride for of in planned] == [1, 2, 4]
    # A second each buys 100 matrices of 10 ms, in 1,000 steps.
    assert per_step == {"ranks": 0.0625, "cosines": 0.0625}
    planned = jobs()
    divide(0.001, 1000, planned, turns)  # Too little for anything: some of each is kept.
    assert [of.times // of.stride for of in planned] == [31, 10, 2]


def test_jobs_cost_the_median_of_what_they_took_writing_included():
    bill = Bill()
    bill.itemize(True)
    assert bill.cost("record") is None
    bill.add("record", 7.0)
    bill.add("write", 7.0)
    for _ in range(4):
        bill.add("record", 0.03)
    bill.add("write", 0.04)
    bill.add("write", 7.0)  # nothing was waiting
    assert bill.cost("record") == pytest.approx(0.03 + 0.01)


def test_a_share_thins_a_schedule_from_its_first_step_on():
    share = Share(0.05, {"record": 3})
    due = [step for step in range(200) if share.due("record", Schedule(per_decade=3), step)]
    assert due == [0, 5, 46]  # of 0, 1, 2, 5, 10, 22, 46, 100
    assert [s for s in range(10) if share.due("record", Schedule(every=1), s)] == [0, 3, 6, 9]
    assert share.due("pictures", Schedule(every=1), 1)


def test_a_run_keeps_to_one_budget_says_so_and_goes_on_with_it(tmp_path, capsys):
    keep = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=20, save_top_k=-1)
    ranks, norms = EffectiveRank(SPARSE), WeightNorms()
    limit = Overhead(Schedule(every=10), overhead=0.01)
    trainer = fit(
        tmp_path, ranks, norms, limit, RunSummary(), keep, max_steps=200, enable_checkpointing=True
    )
    said = capsys.readouterr().err.split("\n\n")[0].replace("\n  ", " ")
    assert re.search(r"recording will take about [\d.]+% of training", said)
    stride = norms.share.strides["record"]
    assert f"weight_norms every {stride} steps" in said
    tables = trajectory.load(trainer.log_dir)
    steps = tables["weight_norms"]["step"].unique().tolist()
    assert steps == sorted({*range(12), *range(0, 200, stride), 200})
    bill = tables["overhead"]
    assert (bill["step"] % 10 == 0).all()
    assert set(bill["callback"]) == {"effective_rank", "weight_norms", "overhead"}

    state = torch.load(tmp_path / "step=20.ckpt", weights_only=False)["callbacks"]
    assert state["lit_gamma.weight_norms"]["share"]["strides"] == {"record": stride}
    state["lit_gamma.effective_rank"]["share"]["matrices_per_step"] = 3.0
    resumed = EffectiveRank(SPARSE)
    again = [resumed, Overhead(overhead=0.01)]
    for callback in again:
        callback.load_state_dict(state[callback.state_key])
    fit(tmp_path, *again, max_steps=15)
    assert resumed.pace == 3.0  # no second calibration


def test_without_a_budget_everything_is_recorded_as_scheduled_and_nothing_in_turn(tmp_path):
    trainer = fit(
        tmp_path, EffectiveRank(SPARSE), WeightNorms(), Overhead(overhead=None), max_steps=15
    )
    tables = trajectory.load(trainer.log_dir)
    last = trainer.global_step
    assert tables["weight_norms"]["step"].nunique() == last + 1
    scheduled = {step for step in range(last) if SPARSE.due(step)}
    assert set(tables["effective_rank"]["step"]) == scheduled | {last}


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


def test_the_update_ratio_is_per_step_however_seldom_it_is_recorded(tmp_path):
    snapshots = Snapshots()
    trainer = fit(tmp_path, WeightNorms(Schedule(every=4)), snapshots, max_steps=10)
    rows = trajectory.load(trainer.log_dir)["weight_norms"].query("role == 'lm_head'")
    assert list(rows["step"]) == [0, 4, 8, 10]
    for before, row in zip([0, 4, 8], list(rows.itertuples())[1:], strict=True):
        old, new = (snapshots.weights[i][f"{row.matrix}.weight"] for i in (before, row.step))
        moved = (new.double() - old.double()).norm() / old.double().norm()
        assert row.update_ratio == pytest.approx(moved.item() / (row.step - before), rel=1e-4)


def test_tensor_parallel_sizes_are_refused(monkeypatch):
    module = tiny_module()
    mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    monkeypatch.setattr(type(module), "device_mesh", mesh)
    with pytest.raises(InputError, match="tensor_parallel_size is 2; set it to 1"):
        module.configure_model()


def test_bad_budgets_are_refused():
    with pytest.raises(InputError, match=r"overhead must be a positive share.*got 0"):
        Overhead(overhead=0)
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


def losses(rank: int, step: int) -> np.ndarray:
    generated = np.random.default_rng([rank, step]).exponential(size=LENGTHS[step][rank])
    generated[::5] = np.nan  # Tokens without a label.
    return generated.astype(np.float32)


def trained_on_batches_of_unlike_length(rank: int, world: int, folder: Path) -> None:
    with record(torch.nn.Linear(2, 2), folder, [TokenLoss(), TokenLossProfile()]) as recording:
        for step in range(len(LENGTHS)):
            recording.batch({}, {"token_loss": torch.from_numpy(losses(rank, step))})
            recording.step()


def test_ranks_may_have_batches_of_different_lengths(tmp_path):
    on_ranks(2, trained_on_batches_of_unlike_length, tmp_path)
    recorded = trajectory.load(tmp_path)["token_loss"]
    assert list(recorded["step"]) == [0, 1, 2, 3]
    for row in recorded.itertuples():
        whole = [losses(rank, row.step) for rank in range(2)]
        assert row.mean == pytest.approx(np.nanmean(np.concatenate(whole)), rel=1e-6)
        kept = [x[np.arange(30) * len(x) // 30] if len(x) > 30 else x for x in whole]
        expected = np.nanquantile(np.concatenate(kept), [0.05, 0.25, 0.5, 0.75, 0.95])
        found = [row.q05, row.q25, row.median, row.q75, row.q95]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("change", ["another shape", "gone", "one more", "another of its shape"])
def test_a_module_that_changes_is_recorded_as_it_began_or_told_so(tmp_path, change):
    first, second = torch.nn.Linear(6, 8), torch.nn.Linear(8, 6)
    module = torch.nn.Sequential(first, second)
    changed = {
        "another shape": lambda: module.__setitem__(1, torch.nn.Linear(8, 5)),
        "gone": lambda: module.__delitem__(0),
        "one more": lambda: module.append(torch.nn.Linear(6, 6)),
        "another of its shape": lambda: module.__setitem__(1, torch.nn.Linear(8, 6)),
    }
    refused = {"another shape": r"1 has shape \(5, 8\), and had \(6, 8\)", "gone": "is gone|has sh"}
    told = pytest.raises(InputError, match=refused[change]) if change in refused else nullcontext()
    with told, record(module, tmp_path, [WeightNorms(), Condensation()]) as recording:
        recording.step()
        changed[change]()
        recording.step()
    of_end = trajectory.load(tmp_path)["weight_norms"].query("step == 2").set_index("matrix")
    assert list(of_end.index) == ([] if change in refused else ["0", "1"])
    for name, row in of_end.iterrows():
        weight = module[int(name)].weight.detach().numpy()
        assert row["frobenius_norm"] == pytest.approx(np.linalg.norm(weight), rel=1e-5)


@pytest.mark.parametrize(
    "wrong", [WeightNorms(), [WeightNorms], [RunSummary()], [lightning.Callback()]]
)
def test_a_recording_takes_callbacks_that_record_and_is_begun(tmp_path, wrong):
    with pytest.raises(InputError, match=r"a list of callbacks that record, such as .WeightNorms"):
        record(torch.nn.Linear(2, 2), tmp_path, wrong)
    with pytest.raises(
        InputError, match=r"the state is not what Recording.state_dict\(\) returned"
    ):
        record(torch.nn.Linear(2, 2), tmp_path, [WeightNorms()], state={"model": {}})
    recording = record(torch.nn.Linear(2, 2), tmp_path, [WeightNorms()])
    for call in (lambda: recording.batch({}), recording.gradients, recording.step):
        with pytest.raises(InputError, match=r"has not begun: write `with record\(...\)"):
            call()


def test_a_batch_of_no_token_or_of_more_than_torch_sorts_costs_no_run():
    of_none = {"mean": torch.full((2,), torch.nan), "token_loss": torch.zeros(2, 0)}
    assert all(values.isnan().all() for values in TokenLoss().settle(of_none).values())
    many = torch.arange(2**24 + 100.0)[None] / 2**24
    found = TokenLoss().settle({"mean": many.mean(1), "token_loss": many})
    assert found["median"].item() == pytest.approx(0.5, rel=1e-4)
    assert found["q95"].item() == pytest.approx(0.95, rel=1e-4)
