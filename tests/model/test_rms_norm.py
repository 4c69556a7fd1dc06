"""The norm's own backward against PyTorch's, in float64 and over the scales of small weights."""

import pytest
import torch
from torch import nn

from lit_gamma.model.rms_norm import RMSNorm


def both(scale, eps, dtype=torch.float32, shape=(3, 5, 16)):
    """Output and gradients of ours, and of PyTorch's in float64."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    found = []
    for make, kind in ((RMSNorm, dtype), (nn.RMSNorm, torch.float64)):
        norm = make(shape[-1], eps=eps).to(kind)
        norm.weight.data.copy_(weight)
        given = (scale * x).to(kind).requires_grad_()
        out = norm(given)
        out.backward(gradient.to(kind))
        found.append((out, given.grad, norm.weight.grad))
    return zip(*found, strict=True)


@pytest.mark.parametrize("eps", [1e-12, 1e-5])
@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e-3, 1.0, 1e3])
def test_values_and_gradients_are_those_of_torch_in_double_precision(scale, eps):
    for ours, theirs in both(scale, eps):
        assert torch.allclose(
            ours.double(), theirs, rtol=1e-5, atol=1e-6 * theirs.abs().max().item()
        )
    for ours, theirs in both(scale, eps, torch.float64):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-13 * theirs.abs().max().item())


def test_it_can_be_differentiated_twice_frozen_and_for_a_single_vector():
    norm = RMSNorm(6, eps=1e-3).double()
    for shape in ((4, 6), (6,), (2, 3, 6)):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(norm, x)
        assert torch.autograd.gradgradcheck(norm, x)
    norm.weight.requires_grad_(False)
    assert torch.autograd.gradgradcheck(norm, x)
    norm(x.transpose(1, 2).contiguous().transpose(1, 2)).sum().backward()
    assert norm.weight.grad is None


def test_it_is_torchs_own_where_that_is_fused_or_asked_for():
    ours, theirs = RMSNorm(8, eps=1e-12), nn.RMSNorm(8, eps=1e-12)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 8)
    assert torch.equal(ours(x.bfloat16()), theirs(x.bfloat16()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))
