"""What differs between runs: which tokens each learns, when, and how their weights develop."""

from lit_gamma.comparison.bootstrap import curves, learnt, loss_differences
from lit_gamma.comparison.runs import Comparison, Run, align, load_run

__all__ = ["Comparison", "Run", "align", "curves", "learnt", "load_run", "loss_differences"]
