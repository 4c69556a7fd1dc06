"""The histogram of the training loss and its mean by position, against NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import fit
from hypothesis import given
from hypothesis import strategies as st

from lit_gamma import trajectory
from lit_gamma.callbacks import Schedule, TokenLoss, TokenLossProfile
from lit_gamma.callbacks.token_loss_profile import CONTEXTS, EDGES


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
