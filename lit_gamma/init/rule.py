"""The γ rule: every weight matrix drawn with std = d_in^(-γ), and the audit of what was drawn."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lit_gamma.errors import InputError
from lit_gamma.init.audit import Audit, AuditRow
from lit_gamma.init.neutral import neutral_value
from lit_gamma.weights.parameters import Parameter, Roles, parameters
from lit_gamma.weights.parametrized import assign_parametrized
from lit_gamma.weights.parts import Part, parts
from lit_gamma.weights.sharding import fill

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

_FROZEN = "left alone, frozen"
_LORA = "left alone, LoRA"
_UNSEEN = "left alone, lazy, empty, complex or codes"
_STRUCTURAL = "left alone, a time scale of a state space or marked _no_reinit"
_UNASSIGNABLE = "left alone, its parametrization takes no values"
_PARAMETRIZED = "drawn through its parametrization"
_UNRECOGNISED = "not recognised, drawn by the rule"
_VECTOR = "left as made, a vector that is neither a bias nor a norm's scale"
_UNTRIED_NORM = "set to one, a norm that could not be tried out"
_META = "not drawn, on the meta device: call module.to_empty(device=...) and initialize again"


@dataclass(frozen=True)
class _Rule:
    """The options of :func:`gamma_init_`, checked."""

    gamma: float | None
    std: float | None
    rates: Mapping[str, float]
    residual_scale: ResidualScale
    preset: Preset | None
    d_model: int | None
    n_layers: int

    def row(self, parameter: Parameter, part: Part) -> AuditRow:
        """What is expected of a matrix; its realised std is not known yet."""
        shape = part.matrix(torch.empty(parameter.tensor.shape, device="meta")).shape
        std, rate = self._std_and_rate(part.role, shape[1])
        if self.residual_scale == "depth" and part.role in _RESIDUAL_ROLES:
            std /= math.sqrt(2 * self.n_layers)
        name, dtype = f"{parameter.path}{part.suffix}", parameter.tensor.dtype
        if std < torch.finfo(dtype).tiny:
            raise InputError(
                f"gamma {rate} gives {name} a std of {std:.3g}, "
                f"below what {dtype} can hold; choose a smaller gamma, or a larger std"
            )
        return AuditRow(name, part.role, (shape[0], shape[1]), rate, std, math.nan)

    def _std_and_rate(self, role: str, d_in: int) -> tuple[float, float]:
        rate = self.rates.get(_GROUP_OF.get(role, ""), self.gamma)
        if rate is not None:
            return (self.d_model if self.preset and self.d_model else d_in) ** -rate, rate
        assert self.std is not None
        return self.std, math.inf if d_in == 1 else -math.log(self.std, d_in)


@torch.no_grad()
def gamma_init_(
    module: nn.Module,
    gamma: float | None = 1.0,
    overrides: Mapping[str, float] | None = None,
    residual_scale: ResidualScale = "none",
    preset: Preset | None = None,
    generator: torch.Generator | None = None,
    roles: Roles | None = None,
    std: float | None = None,
) -> Audit:
    r"""Initializes a module in place by the γ rule.

    Every weight matrix seen by :func:`lit_gamma.neurons` is drawn from
    :math:`\mathcal N(0, \sigma^2)` with :math:`\sigma = d_\text{in}^{-\gamma}` (arXiv 2505.23013;
    arXiv 2501.08537), each projection in a fused one from its own fan-in. An embedding row has
    d_model entries, so its d_in is d_model; its padding row becomes zero. Norms become neutral
    (one, or zero where the layer adds one itself) and biases zero. Tied weights are drawn once.
    Sharded weights (DTensor) are drawn whole on every process, so they do not depend on how many
    there are.

    Left alone and said in the audit are frozen parameters, LoRA's, and vectors that are neither
    bias nor norm. A parametrized weight is drawn through its parametrization. Whatever else is not
    recognised is drawn by the rule and listed.

    Args:
        module: The module to initialize. Its parameters are overwritten.
        gamma: The initialization rate γ: 0.5 is the usual fan-in scale, larger is smaller
            initialization, 1 the typical "small". None if ``std`` is given.
        overrides: γ for single groups of roles, by the names of :data:`GROUPS`.
        residual_scale: ``depth`` multiplies the std of the matrices that write to the residual
            stream by 1/sqrt(2 n_layers), as GPT-2 does.
        preset: ``complexity_control`` follows the released code of arXiv 2501.08537: d_model in
            place of d_in for every matrix, ``residual_scale="depth"``, and biases left as they
            were made (PyTorch's default).
        generator: Source of randomness; its device does the drawing, whatever the parameters'. If
            None, the global one of each parameter's device.
        roles: Roles that names do not tell, see :func:`lit_gamma.neurons`.
        std: One σ for every matrix that no override names, in place of γ: 0.02 is usual (GPT-2).
            The audit says which γ that is at each d_in.

    Returns:
        The audit, for each matrix the expected and the realised std, and what was left alone.

    Raises:
        InputError: Not one of γ and ``std`` is given; it is not finite, is negative or gives a std
            too small for the dtype; an override names no group, or one that has no matrix here.
            Nothing has been overwritten then.
    """
    rates = checked_rates(gamma, overrides or {}, std)
    if residual_scale not in get_args(ResidualScale):
        raise InputError(f"residual_scale {residual_scale!r} is unknown; known: none, depth")
    if preset not in (None, *get_args(Preset)):
        raise InputError(f"preset {preset!r} is unknown; known: complexity_control")
    if preset == "complexity_control":
        if gamma is None:
            raise InputError("preset complexity_control draws by gamma: give gamma in place of std")
        residual_scale = "depth"
    notes: dict[str, list[str]] = defaultdict(list)
    found = _trained(parameters(module, roles), notes)
    matrices = [parameter for parameter in found if parameter.kind == "matrix"]
    rule = _Rule(gamma, std, rates, residual_scale, preset, _d_model(matrices), _n_layers(matrices))
    plan = [
        (matrix, [(part, rule.row(matrix, part)) for part in parts(matrix)]) for matrix in matrices
    ]
    _refuse_idle(rates, {part.role for _, planned in plan for part, _ in planned})
    rows = [row for matrix, planned in plan for row in _draw(matrix, planned, generator, notes)]
    for parameter in found:
        _settle(parameter, preset, notes)
    return Audit(rows, notes, std)


def checked_rates(
    gamma: float | None, overrides: Mapping[str, float], std: float | None = None
) -> dict[str, float]:
    """Returns the overrides.

    Raises:
        InputError: Not one of γ and std is given, one of them or an override is impossible, or an
            override names no group.
    """
    if std is not None and not (math.isfinite(std) and std > 0):
        raise InputError(f"std (init_std) must be finite and positive, got {std}")
    if (gamma is None) == (std is None):
        raise InputError(f"gamma is {gamma}, std (init_std) is {std}: give one, the other null")
    unknown = sorted(set(overrides) - set(GROUPS))
    if unknown:
        raise InputError(
            f"gamma override {unknown[0]!r} names no group; known: {', '.join(GROUPS)}"
        )
    for name, value in {"gamma": gamma, **overrides}.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise InputError(f"{name}: gamma must be finite and not negative, got {value}")
    return dict(overrides)


def _refuse_idle(rates: Mapping[str, float], roles: set[str]) -> None:
    idle = sorted(set(rates) - {_GROUP_OF.get(role) for role in roles})
    if idle:
        raise InputError(f"gamma override {idle[0]!r} has no matrix here (tied, or another name)")


def _d_model(matrices: list[Parameter]) -> int | None:
    tables = (m.tensor for m in matrices if m.roles == ("embedding",) and m.tensor.ndim == 2)
    return next((table.shape[1] for table in tables), None)


def _n_layers(matrices: list[Parameter]) -> int:
    return len({m.layer for m in matrices if m.layer is not None}) or 1


def _trained(found: list[Parameter], notes: dict[str, list[str]]) -> list[Parameter]:
    """The parameters that initialization may touch."""
    trained = []
    for parameter in found:
        if "lora_" in parameter.path:
            notes[_LORA].append(parameter.path)
        elif parameter.kind == "unseen":
            notes[_UNSEEN].append(parameter.path)
        elif parameter.kind == "structural" or getattr(parameter.tensor, "_no_reinit", False):
            notes[_STRUCTURAL].append(parameter.path)
        elif parameter.frozen:
            notes[_FROZEN].append(parameter.path)
        else:
            trained.append(parameter)
    return trained


def _draw(
    parameter: Parameter,
    planned: list[tuple[Part, AuditRow]],
    generator: torch.Generator | None,
    notes: dict[str, list[str]],
) -> list[AuditRow]:
    """Draws the matrices of a parameter; returns their rows with the realised std."""
    if parameter.roles == ("other",):
        notes[_UNRECOGNISED].append(parameter.path)
    tensor = parameter.tensor
    if tensor.is_meta:
        notes[_META].append(parameter.path)
        return [row for _, row in planned]
    device = generator.device if generator else tensor.device
    # Whole and contiguous, so that the draw depends neither on shards nor on strides.
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    for part, row in planned:
        part.cut(fresh).normal_(0.0, row.expected_std, generator=generator)
    realised = fresh
    if parameter.parametrization:
        made = assign_parametrized(parameter.owner, parameter.leaf, fresh.to(tensor.device))
        said = _UNASSIGNABLE if made is None else _PARAMETRIZED
        notes[f"{said} ({parameter.parametrization})"].append(parameter.path)
        if made is None:
            return []
        realised = made
    rows = [replace(row, realised_std=_rms(part.cut(realised))) for part, row in planned]
    if parameter.parametrization is None:
        padding = getattr(parameter.owner, "padding_idx", None)
        if padding is not None:
            fresh[padding] = 0
        fill(tensor, fresh)
    return rows


def _rms(tensor: Tensor) -> float:
    return tensor.double().square().mean().sqrt().item()


def _settle(parameter: Parameter, preset: Preset | None, notes: dict[str, list[str]]) -> None:
    """Makes norms neutral and biases zero."""
    tensor = parameter.tensor.detach()
    if parameter.kind == "norm":
        value = neutral_value(parameter.owner, parameter.leaf)
        if value is None:
            notes[_UNTRIED_NORM].append(parameter.path)
        tensor.fill_(1.0 if value is None else value)
    elif parameter.kind == "bias" and preset is None:
        tensor.zero_()
    elif parameter.kind == "vector":
        notes[_VECTOR].append(parameter.path)
