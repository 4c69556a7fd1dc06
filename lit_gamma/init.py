"""The γ rule: every weight matrix drawn with std = d_in^(-γ), and the audit of what was drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_gamma.errors import InputError
from lit_gamma.neurons import NeuronMatrix, neurons

ResidualScale = Literal["none", "depth"]
Preset = Literal["complexity_control"]

GROUPS: dict[str, tuple[str, ...]] = {
    "embedding": ("embedding", "position"),
    "attention_qk": ("query", "key"),
    "attention_vo": ("value", "attention_gate", "attention_out"),
    "mlp": ("mlp_up", "mlp_gate", "mlp_down"),
    "lm_head": ("lm_head",),
}
"""The names accepted in ``overrides``, each with the roles it stands for."""

_GROUP_OF = {role: group for group, roles in GROUPS.items() for role in roles}
_RESIDUAL_ROLES = ("attention_out", "mlp_down")


@dataclass(frozen=True)
class AuditRow:
    """One tensor after initialization.

    Attributes:
        name: Path of the parameter.
        role: Its role, see :data:`lit_gamma.neurons.ROLES`.
        shape: (n_neurons, d_in).
        gamma: The initialization rate that was applied.
        expected_std: Standard deviation of the rule.
        realised_std: Root mean square of the entries drawn, in float64.
    """

    name: str
    role: str
    shape: tuple[int, int]
    gamma: float
    expected_std: float
    realised_std: float

    @property
    def deviation(self) -> float:
        """(realised - expected) in units of its standard error, expected_std / sqrt(2 n d)."""
        error = self.expected_std / math.sqrt(2 * math.prod(self.shape))
        return (self.realised_std - self.expected_std) / error


class Audit(tuple[AuditRow, ...]):
    """The rows of an initialization; ``print(audit)`` shows them as a table."""

    __slots__ = ()

    def __str__(self) -> str:
        width = max((len(row.name) for row in self), default=4)
        head = f"{'name':<{width}}  {'role':<14}  {'shape':>13}  {'gamma':>6}  "
        head += f"{'expected':>10}  {'realised':>10}  {'error/se':>8}"
        lines = [
            f"{row.name:<{width}}  {row.role:<14}  {'x'.join(map(str, row.shape)):>13}  "
            f"{row.gamma:>6.3g}  {row.expected_std:>10.4g}  {row.realised_std:>10.4g}  "
            f"{row.deviation:>+8.2f}"
            for row in self
        ]
        return "\n".join([head, *lines])


@torch.no_grad()
def gamma_init_(
    module: nn.Module,
    gamma: float = 1.0,
    overrides: Mapping[str, float] | None = None,
    residual_scale: ResidualScale = "none",
    preset: Preset | None = None,
    generator: torch.Generator | None = None,
) -> Audit:
    r"""Initializes a module in place by the γ rule.

    Every weight matrix seen by :func:`lit_gamma.neurons.neurons` is drawn from
    :math:`\mathcal N(0, \sigma^2)` with :math:`\sigma = d_\text{in}^{-\gamma}` (arXiv 2505.23013;
    arXiv 2501.08537). An embedding row has d_model entries, so its d_in is d_model. Norm scales
    become one and biases zero. Tied weights are drawn once.

    Args:
        module: The module to initialize. Its parameters are overwritten.
        gamma: The initialization rate γ: 0.5 is the usual fan-in scale, larger is smaller
            initialization, 1 the typical "small".
        overrides: γ for single groups of roles, by the names of :data:`GROUPS`.
        residual_scale: ``depth`` multiplies the std of the matrices that write to the residual
            stream by 1/sqrt(2 n_layers), as GPT-2 does.
        preset: ``complexity_control`` follows the released code of arXiv 2501.08537: d_model in
            place of d_in for every matrix, ``residual_scale="depth"``, and biases left as they
            were made (PyTorch's default).
        generator: Source of randomness; the global one if None.

    Returns:
        The audit: for each tensor the expected and the realised std.

    Raises:
        InputError: γ is not finite, is negative or too large for the dtype, or an override names
            no group, or one that has no matrix here. Nothing has been overwritten then.
    """
    rates = _rates(gamma, overrides or {})
    if residual_scale not in get_args(ResidualScale):
        raise InputError(f"residual_scale {residual_scale!r} is unknown; known: none, depth")
    if preset not in (None, *get_args(Preset)):
        raise InputError(f"preset {preset!r} is unknown; known: complexity_control")
    if preset == "complexity_control":
        residual_scale = "depth"
    matrices = list(neurons(module))
    rows = []
    for matrix, rate, std in _plan(matrices, rates, gamma, residual_scale, preset):
        matrix.weight.normal_(0.0, std, generator=generator)
        rows.append(_audit_row(matrix, rate, std))
    for name, vector in _vectors(module):
        if not name.endswith("bias"):
            vector.fill_(1.0)
        elif preset is None:
            vector.zero_()
    return Audit(rows)


def _plan(
    matrices: list[NeuronMatrix],
    rates: dict[str, float],
    gamma: float,
    residual_scale: ResidualScale,
    preset: Preset | None,
) -> list[tuple[NeuronMatrix, float, float]]:
    """Decides (matrix, γ, std) for all before anything is overwritten."""
    d_model = next((m.weight.shape[1] for m in matrices if m.role == "embedding"), None)
    n_layers = len({m.layer for m in matrices if m.layer is not None}) or 1
    idle = sorted(set(rates) - {_GROUP_OF.get(m.role) for m in matrices})
    if idle:
        raise InputError(f"gamma override {idle[0]!r} has no matrix here (tied, or another name)")
    plan = []
    for matrix in matrices:
        rate = rates.get(_GROUP_OF.get(matrix.role, ""), gamma)
        fan_in = d_model if preset and d_model else matrix.weight.shape[1]
        std = fan_in**-rate
        if residual_scale == "depth" and matrix.role in _RESIDUAL_ROLES:
            std /= math.sqrt(2 * n_layers)
        if std < torch.finfo(matrix.weight.dtype).tiny:
            raise InputError(
                f"gamma {rate} gives {matrix.name} a std of {std:.3g}, "
                f"below what {matrix.weight.dtype} can hold; choose a smaller gamma"
            )
        plan.append((matrix, rate, std))
    return plan


def _rates(gamma: float, overrides: Mapping[str, float]) -> dict[str, float]:
    unknown = sorted(set(overrides) - set(GROUPS))
    if unknown:
        raise InputError(
            f"gamma override {unknown[0]!r} names no group; known: {', '.join(GROUPS)}"
        )
    for name, value in {"gamma": gamma, **overrides}.items():
        if not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}: gamma must be finite and not negative, got {value}")
    return dict(overrides)


def _audit_row(matrix: NeuronMatrix, gamma: float, std: float) -> AuditRow:
    rows, columns = matrix.weight.shape
    realised = matrix.weight.double().square().mean().sqrt().item()
    return AuditRow(matrix.name, matrix.role, (rows, columns), gamma, std, realised)


def _vectors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, p.detach()) for name, p in module.named_parameters() if p.ndim == 1)
