"""The histogram of the training loss and its means by position and frequency, against NumPy."""

from __future__ import annotations

import math
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
from helpers.runs import fit
from hypothesis import given
from hypothesis import strategies as st

from lit_gamma import LanguageModel, TransformerConfig, trajectory
from lit_gamma.callbacks import Schedule, TokenLoss, TokenLossProfile
from lit_gamma.callbacks.token_loss_profile import CONTEXTS, EDGES, FREQUENCIES
from lit_gamma.data import Text


def expected(losses: list[np.ndarray]) -> dict[str, float]:
    found: dict[int, list[float]] = {c: [] for c in CONTEXTS}
    for loss in losses:
        for i, column in enumerate(loss.T):
            seen = min(2 ** math.ceil(math.log2(i + 1)), CONTEXTS[-1])
            found[seen] += [x for x in column if not math.isnan(x)]
    every = np.concatenate([loss[~np.isnan(loss)] for loss in losses])
    shares = np.histogram(every, [*EDGES, np.inf])[0] / len(every)
    means = {f"mean_at_{c}": np.mean(x) if x else np.nan for c, x in found.items()}
    return means | {f"share_from_{e:g}": s for e, s in zip(EDGES, shares, strict=True)}


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 1000),
)
def test_bins_are_those_of_numpy(lengths, rows, seed):
    generator = np.random.default_rng(seed)
    losses = [generator.exponential(3, (rows, n)).astype(np.float32) for n in lengths]
    for loss in losses:
        loss[generator.random(loss.shape) < 0.3] = np.nan
        loss[0, 0] = generator.choice(EDGES[5:])  # a lower edge belongs to its bin
    measured = TokenLossProfile().measure([{"token_loss": torch.from_numpy(x)} for x in losses])
    for name, value in expected(losses).items():
        np.testing.assert_allclose(measured[name], value, rtol=1e-5, err_msg=name)
    assert all(measured[f"mean_of_1_in_{n}"].isnan() for n in FREQUENCIES)  # not known here


class Spy(lightning.Callback):
    """Keeps what a step trained on."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((outputs["token_loss"].numpy().copy(), batch["labels"].numpy().copy()))


def test_means_by_frequency_are_those_of_the_training_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = np.random.default_rng(0).choice(list("aaaaaaaaaabcdefghij \n"), 12_000)
    words[100] = "z"  # one in 10,800
    Path("text.txt").write_text("".join(words))
    data = Text("text.txt", context_length=16, batch_size=8, val_fraction=0.1, cache_dir=".")
    model = LanguageModel(TransformerConfig(257, 16, n_layers=1, d_model=16), 0.8)
    profile, spy = TokenLossProfile(Schedule(every=1)), Spy()
    trainer = fit(tmp_path, profile, spy, module=model, data=data, max_steps=85)
    text = np.frombuffer(Path("text.txt").read_bytes(), np.uint8)[:10_800]
    frequency = np.bincount(text, minlength=257) / len(text)
    recorded = trajectory.load(trainer.log_dir)["token_loss_profile"]
    z_seen = 0
    for (_, row), (loss, labels) in zip(recorded.iterrows(), spy.seen, strict=True):
        for n in FREQUENCIES:
            inside = (frequency[labels] < 10 / n) & (frequency[labels] >= 1 / n)
            if n == 100_000:
                inside = frequency[labels] < 1e-4
                z_seen += inside.sum()
            wanted = loss[inside].mean() if inside.any() else np.nan
            np.testing.assert_allclose(row[f"mean_of_1_in_{n}"], wanted, rtol=1e-5)
    assert z_seen


def test_contexts_without_end_and_loss_without_positions():
    loss = torch.arange(3000.0).expand(2, -1)
    measured = TokenLossProfile().measure([{"token_loss": loss}])
    assert measured["mean_at_1024"].item() == np.arange(512, 1024).mean()
    assert measured["mean_at_2048"].item() == np.arange(1024, 3000).mean()
    flat = TokenLossProfile().measure([{"token_loss": loss.flatten()}])
    assert flat["mean_at_1024"].isnan()
    assert flat["share_from_16"].item() == pytest.approx((3000 - 16) / 3000)


def test_the_profile_is_that_of_the_loss_recorded_beside_it(tmp_path):
    callbacks = TokenLoss(), TokenLossProfile(Schedule(every=3))
    trainer = fit(tmp_path, *callbacks, max_steps=8, accumulate_grad_batches=2)
    tables = trajectory.load(trainer.log_dir)
    profile, loss = tables["token_loss_profile"], tables["token_loss"].set_index("step")
    assert list(profile["step"]) == [0, 3, 6]
    # The task asks at the last of nine tokens only.
    np.testing.assert_allclose(profile["mean_at_16"], loss.loc[[0, 3, 6], "mean"], rtol=1e-6)
    assert profile[[f"mean_at_{c}" for c in CONTEXTS if c != 16]].isna().all(axis=None)
    np.testing.assert_allclose(profile.filter(like="share").sum(axis=1), 1, rtol=1e-6)
    assert (profile.loc[0, ["share_from_4", "share_from_5"]].sum() > 0.9).all()  # ln(110) = 4.7
