"""Muon beside AdamW: the arithmetic of both, and a resume that is exact."""

from __future__ import annotations

import torch
from helpers.runs import fit, tiny_module

from lit_gamma.callbacks import Checkpoints
from lit_gamma.model.muon import MuonAndAdamW


def orthogonalized(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Nesterov momentum 0.95, then five Newton-Schulz steps of degree five, float64."""
    momentum = torch.zeros_like(gradients[0])
    for gradient in gradients:
        momentum = 0.95 * momentum + 0.05 * gradient
    u, s, v = torch.linalg.svd(0.05 * gradients[-1] + 0.95 * momentum, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


def test_steps_are_those_of_float64():
    matrix, gain = torch.randn(24, 16), torch.randn(16)
    expected, other = matrix.double(), gain.double()
    p, q = torch.nn.Parameter(matrix.clone()), torch.nn.Parameter(gain.clone())
    optimizer = MuonAndAdamW(
        [{"params": [p], "weight_decay": 0.1}],
        [{"params": [q], "weight_decay": 0.0}],
        lr=0.02, betas=(0.9, 0.99), fused=True,
    )  # fmt: skip
    first = second = torch.zeros(16, dtype=torch.float64)
    seen = []
    for t in range(1, 4):
        p.grad, q.grad = torch.randn(24, 16), torch.randn(16)
        seen.append(p.grad.double())
        optimizer.step()
        update = 0.02 * 0.2 * 24**0.5 * orthogonalized(seen)
        expected = expected * (1 - 0.02 * 0.1) - update
        g = q.grad.double()
        first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g**2
        step = (first / (1 - 0.9**t)) / ((second / (1 - 0.99**t)).sqrt() + 1e-8)
        other = other - 0.02 * step
    assert (q.detach().double() - other).abs().max() < 1e-6
    moved = (expected - matrix).norm()
    assert (p.detach().double() - expected).norm() < 0.02 * moved  # Muon computes in bfloat16.


def test_a_resume_is_exact_and_both_follow_the_schedules(tmp_path):
    def run(name: str, **options):
        module = tiny_module()
        object.__setattr__(module.optimizer_config, "name", "muon")
        object.__setattr__(module.optimizer_config, "weight_decay_window", (0.5, 1.0))
        saved = Checkpoints(tmp_path / name, "{step}", every_n_train_steps=3, save_top_k=-1)
        return fit(
            tmp_path, saved, module=module, max_steps=6, gradient_clip_val=1.0,
            enable_checkpointing=True, **options,
        )  # fmt: skip

    whole = run("whole")
    resumed = run("resumed", ckpt_path=tmp_path / "whole" / "step=3.ckpt")
    states = [list(t.lightning_module.state_dict().values()) for t in (whole, resumed)]
    assert all(map(torch.equal, *states))
    hidden, embedding, gains = whole.optimizers[0].param_groups
    assert hidden["lr"] == embedding["lr"] == gains["lr"]
    assert hidden["weight_decay"] == embedding["weight_decay"] == 0.0  # After the last step.
    assert all(set(whole.optimizers[0].state[p]) == {"momentum_buffer"} for p in hidden["params"])
