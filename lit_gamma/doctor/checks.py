"""What the doctor checks: each check states a fact and, if need be, findings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from textwrap import indent

import torch
from torch import Tensor

from lit_gamma import metrics
from lit_gamma.doctor.finding import Finding
from lit_gamma.init.audit import Audit, AuditRow
from lit_gamma.probing.forward import Seen
from lit_gamma.weights.neurons import NeuronMatrix

SATURATED = 0.05
"""Share of ε in a norm's denominator from which its output is told apart: 2.5 % in RMS."""

SMALL = 0.55
"""γ above which an initialization counts as small; 0.5 is the usual scale."""

SINK = 3.0
"""Attention on the first token, relative to uniform attention, that counts as a sink."""

SHORT = 32
"""Keys that a query sees on (geometric) average below which sinks are hardly at stake."""

STANDARD_ERRORS = 5.0
"""Deviation of a drawn std that is no chance."""

SPREAD = 0.25
"""Range of γ over the roles that no single rule gives."""

LOSS_ABOVE, LOSS_BELOW = 1.0, 0.3
"""Nats around ln(vocabulary) within which the first loss is as expected."""


@dataclass(frozen=True)
class Case:
    """What the doctor has to judge by.

    Attributes:
        matrices: The weight matrices.
        audit: What was drawn, if known.
        norms: What the norms did with the batch.
        attention: What each attention layer did with it.
        loss: The loss of the batch, nats; None if the forward gave none.
        weight_decay: λ, if known.
    """

    matrices: list[NeuronMatrix]
    audit: Audit | None
    norms: list[Seen]
    attention: list[Seen]
    loss: float | None
    weight_decay: float | None

    @cached_property
    def gammas(self) -> dict[str, float]:
        """Role to the median γ that its matrices imply."""
        by_role: dict[str, list[Tensor]] = {}
        for matrix in self.matrices:
            if matrix.weight.shape[1] > 1:
                by_role.setdefault(matrix.role, []).append(metrics.implied_gamma(matrix.weight))
        return {role: torch.stack(found).median().item() for role, found in by_role.items()}

    @cached_property
    def gamma(self) -> float:
        """The median that was drawn with, or else of what the roles imply."""
        drawn = [row.gamma for row in self.audit or ()]
        return median(drawn or self.gammas.values())

    @property
    def trained(self) -> bool:
        """Whether the weights are known to come from training, not from a draw."""
        return self.audit is not None and self.audit.source is not None

    @property
    def now(self) -> list[AuditRow]:
        """The audit's rows with the std that the weights have now, padding left out."""
        rows = []
        for row in self.audit or ():
            ends = (m for m in self.matrices if f".{m.name}".endswith(f".{row.name}"))
            if matrix := next(ends, None):
                weight = matrix.weight[matrix.weight.any(1)]
                std = metrics.rms(weight).item() if len(weight) else 0.0
                rows.append(replace(row, realised_std=std))
        return rows

    @property
    def vocabulary(self) -> int | None:
        """Rows of the output head, or of the embedding that is tied to it."""
        sizes = {matrix.role: matrix.weight.shape[0] for matrix in self.matrices[::-1]}
        return sizes.get("lm_head", sizes.get("embedding"))


Checked = tuple[str, list[Finding]]


def check_weights(case: Case) -> Checked:
    """The weights against the rule they were drawn by, or against each other."""
    gammas = case.gammas
    low, high = (pick(gammas, key=gammas.__getitem__) for pick in (min, max))
    if not case.audit:
        by_role = ", ".join(f"{role} {gamma:.2f}" for role, gamma in gammas.items())
        fact = f"{len(case.matrices)} matrices, gamma by role: {by_role}"
        if case.trained or gammas[high] - gammas[low] <= SPREAD:
            return fact, []
        return fact, [
            Finding(
                "no single rule",
                "warning",
                f"no single rule has drawn the weights: gamma is {gammas[low]:.2f} for {low}, "
                f"{gammas[high]:.2f} for {high}",
                "one gamma for all matrices keeps their scale as width grows; PyTorch's and "
                "Hugging Face's own initializations do not",
                "arXiv 2505.23013",
                "gamma_init_(module, gamma), or the callback GammaInit(gamma)",
            )
        ]
    now = Audit(case.now, case.audit.notes, case.audit.std)
    off = [row for row in now if abs(row.deviation) > STANDARD_ERRORS]
    fact = f"{now.headline()}\n\n{indent(now.summary(), '  ')}\n"
    if not off:
        return fact, []
    worst = max(off, key=lambda row: abs(row.deviation))
    return fact, [
        Finding(
            "not as drawn",
            "warning",
            f"{len(off)} of {len(case.audit)} matrices are not as drawn by the rule: {worst.name} "
            f"has std {worst.realised_std:.3g}, expected {worst.expected_std:.3g}",
            f"{STANDARD_ERRORS:g} standard errors are no chance: something else has written them",
            "the audit of gamma_init_",
            "initialize last, after every other change of the weights",
        )
    ]


def check_norms(case: Case) -> Checked:
    """ε against what comes into each norm."""
    if not case.norms:
        return "none seen in the forward", []
    shares = [seen.values["epsilon_share"].item() for seen in case.norms]
    share, worst = max(zip(shares, case.norms, strict=True), key=lambda pair: pair[0])
    fact = f"{len(shares)} seen, epsilon is at most {share:.2g} of a denominator ({worst.path})"
    saturated = [s for s in shares if s > SATURATED]
    if not saturated:
        return fact, []
    rms, out = (worst.values[name].item() for name in ("input_rms", "normalized_rms"))
    return fact, [
        Finding(
            "saturated norms",
            "warning",
            f"{len(saturated)} of {len(shares)} norms are saturated: in {worst.path} epsilon is "
            f"{share:.0%} of the denominator (input RMS {rms:.2g}, output RMS {out:.2f}, not 1)",
            "an epsilon that is not far below the mean square keeps small activations from being "
            "normalized, which restrains small initialization",
            "arXiv 2606.17945",
            "a smaller epsilon, 1e-12: norm_eps, in Hugging Face configs rms_norm_eps or "
            "layer_norm_eps",
        )
    ]


def check_attention(case: Case) -> Checked:
    """Attention sinks, and whether a gate would remove them."""
    if not case.attention:
        return "none seen (it sees PyTorch's SDPA and eager attention)", []
    gated = any(matrix.role == "attention_gate" for matrix in case.matrices)
    mass, uniform, entropy = (
        torch.cat([seen.values[name] for seen in case.attention])
        for name in ("first_token_mass", "uniform_mass", "uniform_entropy")
    )
    highest = (mass / uniform).max().item()
    fact = (
        f"{len(case.attention)} layers, {len(mass)} heads, {'a' if gated else 'no'} gate, mass on "
        f"the first token at most {highest:.2f} of uniform"
    )
    if gated or not (highest > SINK or case.gamma > SMALL):
        return fact, []
    long = entropy.max().exp().item() > SHORT
    present = f"{highest:.1f} times the uniform mass is on the first token already"
    prone = f"softmax attention without a gate at gamma {case.gamma:.2f}"
    return fact, [
        Finding(
            "attention sink",
            "warning" if long else "note",
            present if highest > SINK else prone,
            "small initialization intensifies attention sinks, which restrain it"
            + ("" if long else "; with contexts as short as here it hardly matters"),
            "arXiv 2606.17945, on gates arXiv 2505.06708",
            "gated attention: gate: elementwise or headwise; for Hugging Face models "
            "lit_gamma.gate_attention_; watch it with the callback AttentionSink",
        )
    ]


def check_weight_decay(case: Case) -> Checked:
    """λ against γ."""
    if case.weight_decay is None:
        return "not given", []
    gamma, given = case.gamma, case.weight_decay
    fact = f"{given:g} at gamma {gamma:.2f}"
    usual = 10 ** (2 * max(gamma, 0.5) - 2)  # Through the two pairs of arXiv 2505.23013.
    small = gamma > SMALL and given <= usual / 5
    if not small and given < 5 * usual:
        return fact, []
    return fact, [
        Finding(
            "weight decay",
            "note",
            f"weight decay {given:g} is {'small' if small else 'large'} for gamma {gamma:.2f}",
            "a larger gamma usually goes with a larger weight decay (gamma 0.5 with 0.1, gamma 1 "
            "with 1), though its effect is confined to a window of training",
            "arXiv 2505.23013; dissenting arXiv 2605.04396",
            f"try about {usual:.1g}, and compare",
        )
    ]


def check_loss(case: Case) -> Checked:
    """The first loss against that of a uniform guess."""
    loss, size = case.loss, case.vocabulary
    if loss is None or size is None:
        return f"{'the forward gives no loss' if loss is None else 'no output head found'}", []
    uniform = math.log(size)
    fact = f"{loss:.3f} nats, ln({size}) = {uniform:.3f}"
    above = loss - uniform
    if -LOSS_BELOW <= above <= LOSS_ABOVE or (case.trained and above < 0):
        return fact, []
    if above < 0:
        reason = "before training nothing can beat a uniform guess: labels are seen in the input"
        reason += ", averaged over too many tokens, or the weights are trained"
        remedy = "check the causal mask, the shift of the labels, and how the loss is averaged"
    elif math.isfinite(loss):
        reason = "logits of std s cost s²/2 nats more than a uniform guess"
        remedy = "a larger gamma for lm_head, or for the embedding tied to it, and a last norm "
        remedy += "before it; check the labels"
    else:
        reason = "a batch without a label has no mean loss; or an activation overflows"
        remedy = "check the labels, and the precision"
    return fact, [
        Finding(
            "first loss",
            "warning",
            f"the first loss is {loss:.3f} nats, expected {uniform:.3f} = ln({size})",
            reason,
            "log-sum-exp of Gaussian logits",
            remedy,
        )
    ]


CHECKS: Mapping[str, Callable[[Case], Checked]] = {
    "weights": check_weights,
    "norms": check_norms,
    "attention": check_attention,
    "weight decay": check_weight_decay,
    "first loss": check_loss,
}
"""The checks by subject, in the order of the report."""
