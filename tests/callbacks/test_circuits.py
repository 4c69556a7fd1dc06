"""Heads, as matrices of their own and as circuits, against the same computed again in float64."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from helpers.references import geometry
from helpers.runs import Snapshots, fit, tiny_module
from lightning.pytorch.callbacks import ModelCheckpoint

import lit_gamma
from lit_gamma import InputError, Transformer, TransformerConfig, trajectory
from lit_gamma.callbacks import (
    Circuits,
    Condensation,
    EffectiveRank,
    Gradients,
    Overview,
    Schedule,
    Updates,
    WeightNorms,
)

STEPS, HEADS, WIDTH = 12, 2, 8
RANKS = ("effective_rank", "participation_ratio", "stable_rank")
OF_WEIGHTS = ("condensation", "effective_rank", "weight_norms")


def callbacks(per_head: bool = True):
    every = Schedule(every=4)
    measures = (Condensation(every, 0), EffectiveRank(every, 0), WeightNorms())
    return [*measures, Updates(every), Gradients(every), Circuits(), Overview(per_head=per_head)]


def two_heads():
    torch.manual_seed(0)
    return tiny_module(n_heads=HEADS, lr=0.02)


def checkpoints(folder):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=8, save_top_k=-1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    root, kept = tmp_path_factory.mktemp("heads"), Snapshots()
    trainer = fit(root, *callbacks(), kept, checkpoints(root), module=two_heads(),
                  enable_checkpointing=True, max_steps=STEPS)  # fmt: skip
    weights = {
        step: {name: w.double().numpy() for name, w in state.items()}
        for step, state in kept.weights.items()
    }
    return trajectory.load(trainer.log_dir), weights, root


def head_of(weights, path: str) -> np.ndarray:
    """A matrix of the record, from the whole weights."""
    name, _, head = path.partition(".head")
    w = weights[f"{name}.weight"]
    return w[int(head) * WIDTH :][:WIDTH] if head else w


def test_every_table_of_weights_has_a_row_for_each_head(recorded):
    tables, weights, _ = recorded
    for name in (*OF_WEIGHTS, "updates", "gradients"):
        table = tables[name]
        heads = table[table["head"].notna()]
        assert set(heads["role"]) == {"query", "key", "value"}
        assert len(heads) == 3 * HEADS * 2 * table["step"].nunique()
        assert set(table["role"][table["head"].isna()]) >= {"attention_out", "mlp_up", "lm_head"}
    for name in OF_WEIGHTS:
        for row in tables[name].to_dict("records"):
            before = weights[row["step"] - 1] if row["step"] else None
            w = head_of(weights[row["step"]], row["matrix"])
            assert (row["n_neurons"], row["d_in"]) == w.shape
            reference = geometry(w, before and head_of(before, row["matrix"]))
            for column in reference.keys() & row.keys() - {"spectral_norm"}:
                close = pytest.approx(reference[column], rel=3e-4, abs=1e-6, nan_ok=True)
                assert row[column] == close, (row["matrix"], column)
    for row in tables["updates"].query(f"step == {STEPS}").to_dict("records"):
        now, before = (head_of(weights[step], row["matrix"]) for step in (STEPS, STEPS - 1))
        expected = geometry(now - before, None)["stable_rank_over_null"]
        assert row["stable_rank_over_null"] == pytest.approx(expected, rel=1e-4)


def test_circuits_are_those_of_whole_products(recorded):
    tables, weights, _ = recorded
    table = tables["circuits"]
    assert sorted(set(table["step"])) == [0, 1, 2, 3, 6, 10, STEPS]
    assert len(table) == 7 * 2 * 2 * HEADS
    for row in table.to_dict("records"):
        path, role, head = row["matrix"].rsplit(".", 2)
        of = {name: weights[row["step"]][f"{path}.{name}.weight"] for name in
              ("query", "key", "value", "out")}  # fmt: skip
        part = slice(WIDTH * row["head"], WIDTH * (row["head"] + 1))
        products = {"qk": of["query"][part].T @ of["key"][part],
                    "ov": of["out"][:, part] @ of["value"][part]}  # fmt: skip
        assert (role, head) == (row["role"], f"head{row['head']}")
        assert (row["layer"], row["d_head"]) == (int(path[-len("0.attention")]), WIDTH)
        expected = geometry(products[role], None)
        for rank in RANKS:
            assert row[rank] == pytest.approx(expected[rank], rel=1e-5), (row["matrix"], rank)
    moved = table.groupby("step")["stable_rank"].mean()
    assert abs(moved[STEPS] / moved[0] - 1) > 0.01


@pytest.mark.parametrize("again", ["resumed", "without"])
def test_a_resume_records_the_same_and_training_is_that_without_it(recorded, tmp_path, again):
    tables, weights, root = recorded
    kept = Snapshots()
    own = callbacks() if again == "resumed" else []
    path = root / "step=8.ckpt" if again == "resumed" else None
    trainer = fit(tmp_path, *own, kept, module=two_heads(), ckpt_path=path, max_steps=STEPS)
    for name, w in kept.weights[STEPS].items():
        assert np.array_equal(w.double().numpy(), weights[STEPS][name]), name
    for name, table in trajectory.load(trainer.log_dir).items() if own else ():
        pandas.testing.assert_frame_equal(table, tables[name], check_exact=True)


def test_a_record_of_heads_goes_on_as_one_of_heads(recorded, tmp_path):
    with pytest.raises(InputError, match=r"per_head is False, but the record .* made with True"):
        fit(tmp_path, *callbacks(per_head=False), module=two_heads(), max_steps=STEPS,
            ckpt_path=recorded[2] / "step=8.ckpt")  # fmt: skip


def test_random_heads_read_one_over_the_null(tmp_path):
    shape = TransformerConfig(vocab_size=9, context_length=4, n_layers=6, n_heads=8, d_model=128)
    model = Transformer(shape)
    lit_gamma.gamma_init_(model, 0.8)
    with lit_gamma.record(model, tmp_path, [Circuits()]):
        pass
    table = trajectory.load(tmp_path)["circuits"]
    for role, rows in table.groupby("role"):
        assert len(rows) == 48
        for rank in RANKS:
            assert rows[f"{rank}_over_null"].mean() == pytest.approx(1, abs=0.02), (role, rank)


def test_what_has_no_heads_is_refused(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with (
        pytest.raises(InputError, match=r"Circuits finds no queries and keys .* in Sequential"),
        lit_gamma.record(model, tmp_path, [Circuits()]),
    ):
        pass
