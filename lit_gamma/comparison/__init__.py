"""What runs have come to, and what differs between them: tokens, tasks and weights over steps."""

from lit_gamma.comparison.alignment import Comparison, align
from lit_gamma.comparison.bootstrap import curves, learnt, loss_differences
from lit_gamma.comparison.runs import Probe, Run, Runs, gather, load_run

__all__ = [
    "Comparison",
    "Probe",
    "Run",
    "Runs",
    "align",
    "curves",
    "gather",
    "learnt",
    "load_run",
    "loss_differences",
]
