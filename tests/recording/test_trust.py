"""Nothing recorded is lost or wrong, whatever breaks around it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from helpers.runs import fit
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lit_gamma import InputError, record, trajectory
from lit_gamma.callbacks import (
    Checkpoints,
    Condensation,
    EffectiveRank,
    GammaInit,
    Overhead,
    RunSummary,
    Schedule,
    TokenLoss,
    TrajectoryCallback,
    WeightNorms,
    WeightTrajectory,
)

EVERY = Schedule(every=1)


class Regression(lightning.LightningModule):
    """A small module of somebody's, which trains on noise."""

    def __init__(self, **hyperparameters):
        super().__init__()
        self.save_hyperparameters(hyperparameters, logger=False)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.batch_size = 4

    def training_step(self, batch, batch_idx):
        loss = (self.layers(batch) - batch).square().mean(-1)
        return {"loss": loss.mean(), "token_loss": loss.detach()}

    def train_dataloader(self):
        return DataLoader(torch.randn(80, 6), batch_size=self.batch_size)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(root: Path, *callbacks, **options) -> lightning.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    options = {"logger": False, "enable_checkpointing": False, "max_steps": 6, **quiet, **options}
    return lightning.Trainer(
        accelerator="cpu", default_root_dir=root, callbacks=list(callbacks), **options
    )


def last_step(folder: Path) -> int:
    return int(trajectory.load(folder)["weight_norms"]["step"].max())


def test_runs_without_a_folder_of_their_own_keep_theirs_apart(tmp_path):
    for steps, warned in ((6, False), (4, True), (3, True)):
        run = trainer(tmp_path, WeightNorms(), RunSummary(), max_steps=steps)
        if warned:
            with pytest.warns(UserWarning, match="holds another run's record; this one goes to"):
                run.fit(Regression())
        else:
            run.fit(Regression())
    folders = [tmp_path, tmp_path / "run-2", tmp_path / "run-3"]
    assert [last_step(folder) for folder in folders] == [6, 4, 3]
    assert [json.loads((f / "summary.json").read_text())["steps"] for f in folders] == [6, 4, 3]


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_that_shares_a_folder_goes_on_over_no_other_s_record(tmp_path, moved):
    root = tmp_path / "here"
    for steps in (6, 4):  # Alike, so that the records begin alike.
        torch.manual_seed(0)
        keep = Checkpoints(root / "checkpoints", f"{steps}", save_top_k=-1, every_n_train_steps=4)
        run = trainer(root, WeightNorms(EVERY), keep, max_steps=steps, enable_checkpointing=True)
        run.fit(Regression())
    if moved:
        root = root.rename(tmp_path / "there")
    again = trainer(root, WeightNorms(EVERY), max_steps=5)
    with pytest.warns(UserWarning, match="another run's record"):
        again.fit(Regression(), ckpt_path=root / "checkpoints" / "4.ckpt")
    assert last_step(root) == 6
    assert last_step(root / "run-3") == 5


def test_the_same_callbacks_in_a_second_fit_do_not_go_on_with_the_first_one_s_record(tmp_path):
    norms = WeightNorms()
    trainer(tmp_path, norms, max_steps=5).fit(Regression())
    with pytest.warns(UserWarning, match="another run's record"):
        trainer(tmp_path, norms, max_steps=3).fit(Regression())
    assert (last_step(tmp_path), last_step(tmp_path / "run-2")) == (5, 3)


def test_a_loop_of_ones_own_goes_on_where_its_folder_was_moved_to(tmp_path):
    model, state = nn.Linear(5, 4), None
    for folder in (tmp_path / "here", tmp_path / "there"):
        with record(model, folder, [WeightNorms(EVERY)], state=state) as recording:
            for _ in range(3):
                recording.step()
            state = recording.state_dict()
        if not (tmp_path / "there").exists():
            folder.rename(tmp_path / "there")
    assert list(trajectory.load(folder)["weight_norms"]["step"]) == list(range(7))


def test_a_loop_of_ones_own_goes_on_in_no_other_run_s_folder(tmp_path):
    states = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        with record(nn.Linear(5, 4), folder, [WeightNorms(EVERY)]) as recording:
            recording.step()
            states.append(recording.state_dict())
    kept = (tmp_path / "one/trajectory/weight_norms.arrow").read_bytes()
    with pytest.raises(InputError, match=r"one holds another record .* is at .*other: name that"):
        record(nn.Linear(5, 4), tmp_path / "one", [WeightNorms(EVERY)], state=states[1])
    assert (tmp_path / "one/trajectory/weight_norms.arrow").read_bytes() == kept
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    with record(nn.Linear(5, 4), tmp_path / "copy", [WeightNorms(EVERY)], state=states[0]) as again:
        again.step()
    assert list(trajectory.load(tmp_path / "copy")["weight_norms"]["step"]) == [0, 1, 2]


def test_a_trial_run_leaves_nothing(tmp_path):
    trainer(tmp_path, WeightNorms(), Condensation(), RunSummary(), fast_dev_run=True).fit(
        Regression()
    )
    assert list(tmp_path.iterdir()) == []


class Alternating(Regression):
    """Three optimizer steps a batch, by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            loss = (self.layers(batch) - batch).square().mean(-1)
            self.manual_backward(loss.mean())
            optimizer.step()
        return {"token_loss": loss.detach()}


def test_a_schedule_is_kept_where_steps_jump(tmp_path):
    ranks = EffectiveRank(Schedule(every=10), None)
    turns = Condensation(Schedule(), matrices_per_step=0.25, pictures=Schedule(every=1000))
    losses = TokenLoss(Schedule(every=7))
    trainer(tmp_path, ranks, turns, losses, max_steps=60).fit(Alternating())
    tables = trajectory.load(tmp_path)
    # Every multiple of 10 lies in one of the jumps 0, 3, 6, ...: the first step at or after it.
    assert sorted(set(tables["effective_rank"]["step"])) == [0, 12, 21, 30, 42, 51, 60]
    assert len(tables["condensation"]) == 2 + 60 // 4 + 1  # and the last weights of the other one
    # A batch belongs to the step before it.
    assert list(tables["token_loss"]["step"]) == [0, 9, 15, 21, 30, 36, 42, 51, 57]


def test_a_batch_that_training_step_skips_has_no_loss(tmp_path):
    class Skips(Regression):
        def training_step(self, batch, batch_idx):
            return None if batch_idx in (0, 2) else super().training_step(batch, batch_idx)

    trainer(tmp_path, TokenLoss(), WeightNorms(), max_steps=5, accumulate_grad_batches=2).fit(
        Skips()
    )
    assert len(trajectory.load(tmp_path)["token_loss"]) == 5


class TooFew(WeightTrajectory):
    def measure(self, weights):
        return {"mean": weights.weight.mean((1, 2)), "largest": weights.weight.amax((1, 2))[:0]}


class Pair(TrajectoryCallback):
    """Two items; what is given takes the place of its own."""

    def __init__(self, observed=None, items=({"layer": [0, 1]}, ["a", "b"]), nulls=None):
        super().__init__()
        self.observed, self.of_items, self.of_nulls = observed, items, nulls or {}

    @property
    def name(self):
        return "pair"

    def observe(self, trainer, pl_module):
        return {"x": torch.zeros(2)} if self.observed is None else self.observed

    def items(self, pl_module):
        return self.of_items

    def nulls(self, pl_module):
        return self.of_nulls


class Renames(TrajectoryCallback):
    def observe(self, trainer, pl_module):
        return {"early" if self.run.step < 3 else "late": torch.zeros(1)}


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (TooFew(), r"too_few: largest is \(0,\); it must be a tensor with one value for each of"),
        (Renames(), "renames: the quantities are late, but were early before"),
        (Pair({"layer": torch.zeros(2)}), "pair: a quantity is called layer, as a column of the"),
        (Pair({"step": torch.zeros(2)}), "pair: a quantity is called step, as a column of the"),
        (Pair({"x": torch.zeros(2, 3)}), r"pair: x has \(3,\) values for each item"),
        (Pair({}), r"pair: observe\(\) gave \{\}; it must be a mapping of quantities"),
        (Pair([1.0]), r"pair: observe\(\) gave \[1.0\]; it must be a mapping of quantities"),
        (Pair(items=({"layer": [0, 1]}, ["a"])), r"pair: items\(\) gives 1 labels for 2 items"),
        (Pair(items=({"a": [0, 1], "b": [0]}, [])), r"columns of different lengths, \{'a': 2, 'b'"),
        (Pair(items=({"step": [0, 1]}, [])), "a column step, which every table has already"),
        (Pair(items=({"layer": [3, 3]}, [])), "gives rows that layer do not tell apart"),
        (Pair(items=({"layer": [3, "a"]}, [])), "gives layer values that are no column of"),
        (Pair(nulls={"x": np.ones(3)}), r"nulls\(\) gives x the shape \(3,\); it must be \(2,\)"),
        (Pair(nulls={"x": 2.0}), r"nulls\(\) gives x the shape \(\); it must be \(2,\)"),
    ],
)
def test_values_that_fit_no_row_are_refused_and_cost_no_other_record(tmp_path, callback, message):
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, callback, WeightNorms(), RunSummary()).fit(Regression())
    if isinstance(callback, Renames):  # Others are refused before training, or first written.
        assert last_step(tmp_path) == 6
        summary = json.loads((tmp_path / "summary.json").read_text())
        assert "quantities are" in summary["status"]
    else:
        assert not (tmp_path / "trajectory" / f"{callback.name}.arrow").exists()


class Odd(Pair):
    def about(self):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "left_out"),
    {
        "lit_gamma.recording.run.write_layout": "the layout of charts in the loggers is left out",
        "lit_gamma.trajectory.lines.Lines.show": "pair is shown in no logger any more",
        "lit_gamma.recording.summary.phases_of": "what the record says as a whole is left out",
        "lit_gamma.callbacks.run_summary.hparams": "the run's entry in TensorBoard's HParams is",
        "": r"pair: about\(\) is left out \(ZeroDivisionError",
    }.items(),
)
def test_what_is_shown_of_a_record_may_fail_and_ends_no_training(
    tmp_path, monkeypatch, fault, left_out
):
    if fault:
        monkeypatch.setattr(fault, None)
    logger = TensorBoardLogger(tmp_path, name="", version="")
    pair = Pair() if fault else Odd()
    run = trainer(tmp_path, pair, WeightNorms(), RunSummary(), logger=logger)
    with pytest.warns(UserWarning, match=left_out):
        run.fit(Regression())
    assert last_step(tmp_path) == 6
    assert len(trajectory.load(tmp_path)["pair"]) == 14
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("gamma", [[0.5, 0.8], {"attention": 0.5}, "small"])
def test_a_gamma_of_ones_own_kind_is_noted_as_it_is(tmp_path, gamma, recwarn):
    class Untrained(Regression):
        def configure_optimizers(self):
            return None

    class Validated(Regression):
        def validation_step(self, batch, batch_idx):
            self.log("val/loss", batch.mean())

        def val_dataloader(self):
            return self.train_dataloader()

    for kind in (Validated, Untrained):
        folder = tmp_path / kind.__name__
        trainer(folder, WeightNorms(), RunSummary(), max_epochs=1).fit(kind(gamma=gamma))
        assert json.loads((folder / "summary.json").read_text())["gamma"] == gamma
        assert (folder / "report.html").is_file()
    assert not [w for w in recwarn if "left out" in str(w.message)]


@pytest.mark.parametrize("settled", ["raises", "is of another name"])
def test_what_cannot_be_settled_costs_no_other_record(tmp_path, settled):
    class Settles(TrajectoryCallback):
        def observe(self, trainer, pl_module):
            return {"value": torch.zeros(1)}

        def settle(self, measured):
            if settled == "raises":
                raise RuntimeError("no solution")
            return {f"value{len(measured['value'])}": measured["value"]}

    run = trainer(tmp_path, Settles(), WeightNorms(), RunSummary(), max_steps=250)
    with pytest.raises((RuntimeError, InputError), match=r"no solution|quantities are"):
        run.fit(Regression())
    assert last_step(tmp_path) >= 99
    assert (tmp_path / "summary.json").is_file()


def test_a_folder_that_is_deleted_costs_what_was_in_it_and_is_said(tmp_path):
    class Deletes(lightning.Callback):
        def on_train_batch_start(self, run, module, batch, batch_idx):
            if run.global_step == 120:
                shutil.rmtree(tmp_path / "trajectory")

    with pytest.warns(UserWarning, match="deleted or replaced.*has holes"):
        trainer(tmp_path, WeightNorms(), Deletes(), RunSummary(), max_steps=320).fit(Regression())
    steps = trajectory.load(tmp_path)["weight_norms"]["step"]
    assert (steps.min(), steps.max()) == (202, 320)
    assert json.loads((tmp_path / "summary.json").read_text())["holes"] == {
        "weight_norms": [[101, 201]]
    }


def test_a_picture_that_cannot_be_drawn_is_left_out(tmp_path):
    class Draws(WeightNorms):
        default_pictures = Schedule(every=2)

        def draw(self, trainer, pl_module, writer):
            raise OverflowError("too large")

    with pytest.warns(UserWarning, match="picture of step 0 is left out .*too large") as said:
        trainer(tmp_path, Draws()).fit(Regression())
    assert sum("is left out" in str(w.message) for w in said) == 1
    assert trajectory.load(tmp_path)["draws"]["step"].max() == 6


def test_a_diverged_run_is_recorded_to_its_end(tmp_path):
    class Diverges(lightning.Callback):
        def on_train_batch_end(self, run, module, *_):
            if run.global_step == 3:
                with torch.no_grad():
                    module.transformer.embedding.weight.fill_(torch.nan)

    pictures = Schedule(every=1)
    recorded = [
        Condensation(EVERY, pictures=pictures),
        EffectiveRank(EVERY, pictures=pictures),
    ]
    run = fit(tmp_path, Diverges(), *recorded, WeightNorms(), RunSummary(), max_steps=6)
    tables = trajectory.load(run.log_dir)
    assert tables["weight_norms"]["step"].max() == 6
    embedding = tables["weight_norms"].query("role == 'embedding' and step >= 4")
    assert embedding["rms"].isna().all()
    summary = json.loads(Path(run.log_dir, "summary.json").read_text())
    assert summary["status"] == "diverged at step 3"


ODD = {
    "tuple keys": {("q", 1): 0.5},
    "not finite": {"limit": np.inf},
    "arrays": {"scale": np.arange(3), "device": torch.device("cpu"), "lr": torch.ones(2)},
    "integer keys": {3: {4: "four"}},
}


@pytest.mark.parametrize("name", ODD)
def test_hyperparameters_of_any_kind_end_no_training(tmp_path, name):
    trainer(tmp_path, WeightNorms(), RunSummary()).fit(Regression(**{"odd": ODD[name]}))
    assert last_step(tmp_path) == 6
    json.loads((tmp_path / "summary.json").read_text())


def test_a_batch_size_finder_does_not_keep_the_rule_from_the_weights(tmp_path):
    rule = GammaInit(1.4)
    finder = BatchSizeFinder(steps_per_trial=1, max_trials=1)
    trainer(tmp_path, rule, WeightNorms(), finder).fit(Regression())
    start = trajectory.load(tmp_path)["weight_norms"].query("step == 0")
    assert rule.audit is not None
    assert start["implied_gamma"].to_numpy() == pytest.approx(1.4, abs=0.15)


def test_a_parameter_that_is_replaced_is_followed(tmp_path):
    class Replaces(lightning.Callback):
        def on_train_batch_start(self, run, module, *_):
            if run.global_step == 2:
                fresh = nn.Parameter(torch.full_like(module.layers[2].weight, 3.0))
                module.layers[2].weight = fresh

    trainer(tmp_path, WeightNorms(), Condensation(EVERY, None), Replaces()).fit(Regression())
    rows = trajectory.load(tmp_path)["weight_norms"].query("matrix == 'layers.2'")
    rms: Tensor = torch.tensor(rows.set_index("step")["rms"].to_numpy())
    assert (rms[:3] < 1).all()
    assert rms[3:].numpy() == pytest.approx(3.0)


def in_turn() -> list[TrajectoryCallback]:
    turns = Condensation(Schedule(per_decade=2), 0.3, pictures=Schedule(every=1000))
    return [turns, EffectiveRank(Schedule(every=9), None), WeightNorms(), TokenLoss()]


def test_the_last_weights_are_measured_whole(tmp_path):
    trainer(tmp_path, *in_turn(), RunSummary(), max_steps=14).fit(Regression())
    tables = trajectory.load(tmp_path)
    assert list(tables["condensation"].groupby("step").size().loc[[0, 3, 10, 14]]) == [2, 2, 2, 2]
    assert sorted(set(tables["effective_rank"]["step"])) == [0, 9, 14]
    assert tables["token_loss"]["step"].max() == 13
    assert not tables["condensation"].duplicated(["step", "matrix"]).any()


def test_ctrl_c_measures_the_last_weights_and_another_error_does_not(tmp_path):
    class Raises(lightning.Callback):
        def __init__(self, error):
            self.error = error

        def on_train_batch_start(self, run, *_):
            if run.global_step == 7:
                raise self.error

    for error, last in ((KeyboardInterrupt(), 7), (ZeroDivisionError(), 0)):
        folder = tmp_path / type(error).__name__
        run = trainer(folder, EffectiveRank(Schedule(every=100), None), Raises(error), max_steps=9)
        with pytest.raises((SystemExit, ZeroDivisionError)):
            run.fit(Regression())
        assert trajectory.load(folder)["effective_rank"]["step"].max() == last


def test_a_run_that_goes_on_after_its_end_has_the_record_of_one_that_did_not_stop(tmp_path):
    def run(folder: Path, steps: int, ckpt_path: Path | None = None) -> None:
        lightning.seed_everything(3)
        keep = Checkpoints(folder / "kept", "{step}", every_n_train_steps=5, save_top_k=-1)
        trainer(
            folder, *in_turn(), keep, max_steps=steps, enable_checkpointing=True, max_epochs=-1
        ).fit(Regression(), ckpt_path=ckpt_path)

    run(tmp_path / "whole", 32)
    run(tmp_path / "parts", 15)
    first = trajectory.load(tmp_path / "parts")["condensation"]
    assert (first["step"] == 15).sum() == 2
    run(tmp_path / "parts", 32, tmp_path / "parts" / "kept" / "step=15.ckpt")
    whole, parts = (trajectory.load(tmp_path / name) for name in ("whole", "parts"))
    assert (whole["condensation"]["step"] == 15).sum() < 2
    older = torch.load(tmp_path / "parts" / "kept" / "step=20.ckpt", weights_only=False)
    for state in older["callbacks"].values():
        state.pop("items_at_last", None)
    torch.save(older, tmp_path / "older.ckpt")
    run(tmp_path / "older", 32, tmp_path / "older.ckpt")
    assert trajectory.load(tmp_path / "older")["condensation"].equals(parts["condensation"])
    for name in ("condensation", "effective_rank", "weight_norms"):
        steps = [list(zip(t[name]["step"], t[name]["matrix"], strict=True)) for t in (whole, parts)]
        assert steps[0] == steps[1], name


class Scale(nn.Module):
    """A module without a matrix."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.scale * x


def test_a_module_without_a_matrix_is_trained_to_its_end_within_a_budget(tmp_path):
    module = Regression()
    module.layers = Scale()
    kinds = (WeightNorms(), EffectiveRank(), Condensation(), Overhead(), TokenLoss(), RunSummary())
    trainer(tmp_path, *kinds, max_steps=20).fit(module)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "finished"
    assert len(trajectory.load(tmp_path)["token_loss"]) == 20


def test_weights_of_double_precision_are_recorded_with_others_beside_them(tmp_path):
    class Double(Regression):
        def training_step(self, batch, batch_idx):
            return self.layers[2](self.layers[:2](batch).double()).square().mean()

    module = Double()
    module.layers[2].double()
    trainer(tmp_path, WeightNorms(), Condensation(), EffectiveRank()).fit(module)
    recorded = trajectory.load(tmp_path)["weight_norms"].query("step == 6").set_index("matrix")
    for i in (0, 2):
        largest = np.linalg.svd(module.layers[i].weight.detach().double().numpy())[1][0]
        of_matrix = recorded.loc[f"layers.{i}"]
        assert of_matrix["spectral_norm"] == pytest.approx(largest, rel=1e-5)


def test_a_module_with_lazy_parameters_is_told_so_before_it_is_trained(tmp_path):
    module = Regression()
    module.layers = nn.LazyLinear(6)
    with pytest.raises(
        InputError, match=r"Regression has lazy parameters.* run a batch through it"
    ):
        trainer(tmp_path, WeightNorms()).fit(module)
