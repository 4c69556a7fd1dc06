"""The loss of every token of a fixed validation text: the callback, its table, its charts."""

from lit_gamma.callbacks.probe_loss.callback import ProbeLoss

__all__ = ["ProbeLoss"]
