"""What may go wrong with a small initialization, told from one batch before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lit_gamma.doctor.checks import CHECKS, Case
from lit_gamma.doctor.finding import Finding
from lit_gamma.errors import InputError
from lit_gamma.init.audit import Audit
from lit_gamma.probing.attention import watched_attention
from lit_gamma.probing.forward import (
    Forward,
    first_samples,
    plain_forward,
    undisturbed,
)
from lit_gamma.probing.norms import watched_norms
from lit_gamma.weights.neurons import neurons
from lit_gamma.weights.parameters import Roles

SAMPLES = 32
"""Most samples of the batch that are run: attention is held in memory whole."""

__all__ = ["Diagnosis", "Finding", "diagnose"]


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor saw, and what it makes of it; ``print(diagnosis)`` shows both.

    Attributes:
        facts: What was measured, by subject.
        findings: What follows from it.
    """

    facts: Mapping[str, str]
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """What a script exits with, 2 if there is a warning, else 0."""
        return 2 if any(finding.level == "warning" for finding in self.findings) else 0

    def __str__(self) -> str:
        facts = [f"{name:<13} {fact}" for name, fact in self.facts.items()]
        return "\n\n".join(["\n".join(facts), *(map(str, self.findings or ["nothing found"]))])


def diagnose(
    module: nn.Module,
    batch: Any,
    audit: Audit | None = None,
    weight_decay: float | None = None,
    forward: Forward | None = None,
    roles: Roles | None = None,
) -> Diagnosis:
    """Examines a module before training, in one forward of a batch that leaves no trace.

    Compared are the drawn weights with the γ rule, the ε of every norm with its input, attention
    with a sink, weight decay with γ, and the loss with ln(vocabulary).

    Args:
        module: A LightningModule, or any module that computes a loss.
        batch: A batch as the training has it; at most the first 32 samples are run.
        audit: What :func:`lit_gamma.gamma_init_` returned; without it, γ is read off the weights.
        weight_decay: λ of the optimizer; not compared if None.
        forward: Runs the batch, by default :func:`~lit_gamma.probing.forward.plain_forward`. Its
            output is the loss, or has it as key or attribute ``loss``.
        roles: Roles that names do not tell, see :func:`lit_gamma.neurons`.

    Returns:
        The diagnosis.

    Raises:
        InputError: The module has no weight matrix, or optimizes by hand and ``forward`` is None.
    """
    matrices = list(neurons(module, roles))
    if not matrices:
        raise InputError(f"doctor: {type(module).__name__} has no weight matrix")
    with (
        undisturbed(module),
        watched_norms(module) as norms,
        watched_attention(module) as attention,
    ):
        output = (forward or plain_forward)(module, first_samples(batch, SAMPLES))
    case = Case(matrices, audit, norms, attention, _loss_of(output), weight_decay)
    facts, findings = {}, []
    for subject, check in CHECKS.items():
        facts[subject], found = check(case)
        findings += found
    return Diagnosis(facts, tuple(findings))


def _loss_of(output: Any) -> float | None:
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    return loss.item() if isinstance(loss, Tensor) and loss.numel() == 1 else None
